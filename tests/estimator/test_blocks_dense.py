"""The dense decoders: parameters as transformers counts them, memory as a traced step has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Link, Shape, build_chain
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.ops.fused_losses import liger_rows
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.step import EMBEDDING_BACKWARD, FORWARD, LOSS, moments
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import catalogue

SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 320,
    "vocab_size": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = SMALL | {"head_dim": 32}
WINDOWS = {
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 32},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 64},
    "gemma": {"model_type": "gemma"} | GEMMA | {"num_key_value_heads": 1},
    "gemma2": {"model_type": "gemma2"} | GEMMA | WINDOWS,
    "gemma3": {"model_type": "gemma3_text"} | GEMMA | WINDOWS,
    "phi3": {"model_type": "phi3"},
    "olmo": {"model_type": "olmo"},
    "olmo-clip": {"model_type": "olmo", "clip_qkv": 8.0},
    "olmo2": {"model_type": "olmo2"},
    "cohere": {"model_type": "cohere"},
    "cohere-norms": {"model_type": "cohere", "use_qk_norm": True},
    "granite": {"model_type": "granite", "residual_multiplier": 0.22},
    "glm": {"model_type": "glm", "head_dim": 32},
    "glm4": {"model_type": "glm4", "head_dim": 32},
}
PUBLISHED = {"chatglm", "chatglm1", "baichuan", "qwen", "internlm", "internlm2"}
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
LOSS_AND_GRADIENT = 2 * 512
"""The loss, named in the training loop, and the gradient it starts from."""

BF16 = {"dtype": "bf16", "attention": "sdpa"}
AUTOCAST = {"dtype": "fp32", "autocast": "bf16", "attention": "sdpa"}
FULL = {"checkpointing": "full"}
TRACED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-autocast-checkpointed": ("llama", AUTOCAST | FULL),
    "llama-eager-checkpointed": ("llama", BF16 | {"attention": "eager"} | FULL),
    "llama-liger": ("llama", BF16 | {"loss": "liger"}),
    "llama-fused-ce": ("llama", BF16 | {"loss": "fused-ce"}),
    "mistral-window": ("mistral", BF16),
    "qwen2-fp16-eager": ("qwen2", {"dtype": "fp16", "attention": "eager"}),
    "qwen3-autocast": ("qwen3", AUTOCAST),
    "gemma2-eager": ("gemma2", BF16 | {"attention": "eager"}),
    "gemma3-flash": ("gemma3", BF16 | {"attention": "flash"}),
    "phi3-flash": ("phi3", BF16 | {"attention": "flash"}),
    "olmo2-checkpointed": ("olmo2", BF16 | FULL),
    "cohere-norms": ("cohere-norms", BF16),
    "granite-checkpointed": ("granite", BF16 | FULL),
    "glm4-eager": ("glm4", BF16 | {"attention": "eager"}),
}


def hf_config(family: str) -> Any:
    """The family's small configuration as a transformers object."""
    from transformers import AutoConfig

    fields = SMALL | FAMILIES[family]
    return AutoConfig.for_model(**fields)


def small_spec(family: str) -> ModelSpec:
    """The same as a `ModelSpec`, read from what transformers would publish."""
    return from_hf_config(hf_config(family).to_dict(), name=family)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_transformers(family: str) -> None:
    """Every weight is there, once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        model = build(hf_config(family))
    spec = small_spec(family)
    links = build_chain(spec, compose(spec), Treatment(), Shape(batch=1, seq=64))
    assert take_inventory(links).numel() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name", [entry.name for entry in catalogue() if entry.spec().model_type in PUBLISHED]
)
def test_parameters_equal_published(name: str) -> None:
    """Models whose code is not in transformers have as many weights as were published."""
    entry = next(entry for entry in catalogue() if entry.name == name)
    spec = entry.spec()
    links = build_chain(spec, compose(spec), Treatment(), Shape(batch=2, seq=64))
    assert take_inventory(links).numel() == entry.parameters


@pytest.mark.parametrize("case", TRACED)
def test_memory_equals_trace(case: str) -> None:
    """Forward and backward peaks of a whole step, to the byte."""
    from vram_plan.bench.trace import TraceConfig, trace_step

    family, options = TRACED[case]
    trace = trace_step(
        TraceConfig(config=hf_config(family), batch=2, seq=64, steps=1, clip=None, **options)
    )
    spec = small_spec(family)
    forward, backward = planned_peaks(spec, options, batch=2, seq=64)
    peaks = trace.phase_peaks
    assert trace.start_bytes + forward == max(peaks["forward"], peaks["loss"])
    assert trace.start_bytes + backward + LOSS_AND_GRADIENT == peaks["backward"]


def planned_peaks(
    spec: ModelSpec, options: Mapping[str, Any], *, batch: int, seq: int
) -> tuple[int, int]:
    """Bytes above what lives all the time: at the fullest forward and backward moment."""
    nbytes = DTYPE_BYTES[options["dtype"]]
    how = Treatment(
        compute_bytes=nbytes,
        weights_bytes=nbytes,
        norm_bytes=nbytes,
        autocast="autocast" in options,
        half=options["dtype"] == "fp16",
        attention=options["attention"],
        loss=options.get("loss", "hf"),
    )
    composition = compose(spec)
    recomputed = options.get("checkpointing", "none")
    links = build_chain(spec, composition, how, Shape(batch=batch, seq=seq, checkpoint=recomputed))
    f = Forward(spec, how, batch=batch, seq=seq)
    kept, passing = shared_bytes(composition, f, checkpointed=recomputed != "none")
    return _peaks(links, kept, passing)


def shared_bytes(composition: Composition, f: Forward, *, checkpointed: bool) -> tuple[int, int]:
    """What every layer reads: kept for the backward pass, gone before the loss."""
    kept = passing = 0
    for tensor in composition.shared(f).values():
        nbytes = -(-tensor.numel * tensor.itemsize // 512) * 512
        if tensor.saved or checkpointed:
            kept += 0 if tensor.layers else nbytes  # some layers' are among the moments
        else:
            passing += nbytes
    return kept, passing


def _peaks(links: tuple[Link, ...], kept: int, passing: int) -> tuple[int, int]:
    found = moments(links)
    forward = max(found[FORWARD].total + passing, found[LOSS].total)
    backward = max(
        moment.total
        for instant, moment in found.items()
        if instant not in (FORWARD, LOSS, EMBEDDING_BACKWARD)
    )
    return forward + kept, backward + kept


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "width", "rows"),
    # ops/fused_linear_cross_entropy.py's own example: 16,384 tokens, 32,000 × 4,096 → 2,048 rows
    [(16_384, 32_000, 4_096, 2_048), (1_000, 128_256, 4_096, 32), (512, 512, 1_024, 512)],
)
def test_liger_chunks(tokens: int, vocabulary: int, width: int, rows: int) -> None:
    """Rows of a chunk are a power of two."""
    assert liger_rows(tokens, vocabulary, width) == rows


def test_late_shift_copies_logits() -> None:
    """Until transformers padded labels, the loss held four copies of the logits, not three."""
    spec = small_spec("llama")
    peaks = {}
    for code in ("padded", "shifted", "rebound"):
        how = Treatment(loss_code=code)
        links = build_chain(spec, compose(spec), how, Shape(batch=4, seq=64, checkpoint="full"))
        peaks[code] = moments(links)[LOSS].inside["logits"]
    one = 4 * 64 * spec.vocab_size
    assert peaks["padded"] < peaks["rebound"] < peaks["shifted"]
    assert peaks["shifted"] > (2 + 4 + 3.9 + 3.9) * one
