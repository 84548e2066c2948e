"""Decoders with experts: parameters as transformers counts them, memory as a traced step has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from vram_plan.estimator.active import active_parameters
from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Shape, build_chain
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.step import EMBEDDING_BACKWARD, FORWARD, LOSS, moments
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import CatalogueEntry, catalogue

SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LOCAL = SMALL | {"intermediate_size": 320, "num_local_experts": 8}
QWEN = SMALL | {
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 192,
    "intermediate_size": 384,
}
LATENT = SMALL | {
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 192,
    "intermediate_size": 384,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL | {"model_type": "mixtral"},
    "mixtral-window": LOCAL | {"model_type": "mixtral", "sliding_window": 32},
    "mixtral-tied": LOCAL | {"model_type": "mixtral", "tie_word_embeddings": True},
    "qwen2-moe": QWEN
    | {
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 320,
        "mlp_only_layers": [0],
    },
    "qwen3-moe": QWEN
    | {"model_type": "qwen3_moe", "head_dim": 64, "norm_topk_prob": True, "decoder_sparse_step": 2},
    "olmoe": SMALL | {"model_type": "olmoe", "intermediate_size": 192, "num_experts": 8},
    "olmoe-clip": SMALL
    | {"model_type": "olmoe", "intermediate_size": 192, "num_experts": 8, "clip_qkv": 8.0},
    "granite-moe": LOCAL
    | {"model_type": "granitemoe", "num_experts_per_tok": 4, "residual_multiplier": 0.22},
    "granite-moe-shared": LOCAL
    | {
        "model_type": "granitemoeshared",
        "shared_intermediate_size": 192,
        "residual_multiplier": 0.22,
    },
    "deepseek-v2": LATENT | {"model_type": "deepseek_v2", "q_lora_rank": 48},
    "deepseek-v2-lite": LATENT | {"model_type": "deepseek_v2", "q_lora_rank": None},
    "deepseek-v3": LATENT
    | {"model_type": "deepseek_v3", "q_lora_rank": 48, "n_group": 8, "topk_group": 4},
    "gpt-oss": LOCAL | {"model_type": "gpt_oss", "head_dim": 32, "sliding_window": 32},
    "phi-moe": LOCAL
    | {
        "model_type": "phimoe",
        "num_local_experts": 4,
        "attention_bias": True,
        "lm_head_bias": True,
    },
    "dbrx": {
        "model_type": "dbrx",
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 4,
        "vocab_size": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 128,
            "ffn_hidden_size": 192,
            "moe_num_experts": 8,
            "moe_top_k": 4,
        },
    },
}
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
LOSS_AND_GRADIENT = 2 * 512
"""The loss, named in the training loop, and the gradient it starts from."""

BF16 = {"dtype": "bf16", "attention": "sdpa"}
FLASH = {"dtype": "bf16", "attention": "flash"}
EAGER = {"dtype": "bf16", "attention": "eager"}
AUTOCAST = {"dtype": "fp32", "autocast": "bf16", "attention": "sdpa"}
FULL = {"checkpointing": "full"}
TRACED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-checkpointed": ("mixtral", FLASH | FULL),
    "qwen2-moe-fp16": ("qwen2-moe", {"dtype": "fp16", "attention": "sdpa"}),
    "qwen3-moe-autocast": ("qwen3-moe", AUTOCAST),
    "olmoe-clip-eager": ("olmoe-clip", EAGER),
    "granite-moe-shared": ("granite-moe-shared", BF16 | FULL),
    "deepseek-v2-flash": ("deepseek-v2", FLASH),
    "deepseek-v3-checkpointed": ("deepseek-v3", BF16 | FULL),
    "gpt-oss-eager": ("gpt-oss", EAGER),
    "phi-moe": ("phi-moe", {"dtype": "fp32", "attention": "sdpa"}),
    "dbrx-autocast": ("dbrx", AUTOCAST),
}


def hf_config(family: str) -> Any:
    """The family's small configuration as a transformers object."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**FAMILIES[family])


def small_spec(family: str) -> ModelSpec:
    """The same as a `ModelSpec`, read from what transformers would publish."""
    fields = hf_config(family).to_dict()
    if fields["model_type"] != "granitemoeshared":
        return from_hf_config(fields, name=family)
    return replace(
        from_hf_config(fields | {"model_type": "granitemoe"}, name=family),
        model_type="granitemoeshared",
        shared_expert_intermediate_size=fields["shared_intermediate_size"],
    )


def count(spec: ModelSpec, how: Treatment | None = None) -> int:
    """Parameters on one rank."""
    links = build_chain(spec, compose(spec), how or Treatment(), Shape(batch=1, seq=64))
    return take_inventory(links).numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_transformers(family: str) -> None:
    """Every weight is there, once; so are those that one token passes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        model = build(hf_config(family))
    spec = small_spec(family)
    weights = {name: p.numel() for name, p in model.named_parameters()}
    assert count(spec) == sum(weights.values())
    routed = sum(n for name, n in weights.items() if "experts" in name.split("."))
    unused = routed * (spec.num_experts - spec.num_experts_per_tok) // spec.num_experts
    assert active_parameters(spec) == sum(weights.values()) - unused


@pytest.mark.parametrize(
    "entry", [e for e in catalogue() if e.spec().num_experts], ids=lambda e: e.name
)
def test_parameters_equal_published(entry: CatalogueEntry) -> None:
    """The catalogue's counts, weight for weight."""
    assert count(entry.spec()) == entry.parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("mistralai/Mixtral-8x22B-v0.1", 39),
        ("deepseek-ai/DeepSeek-V2", 21),
        ("Qwen/Qwen1.5-MoE-A2.7B", 2.7),
        ("Qwen/Qwen3-235B-A22B", 22),
        ("allenai/OLMoE-1B-7B-0924", 1.3),
        ("microsoft/Phi-3.5-MoE-instruct", 6.6),
        ("databricks/dbrx-base", 36),
    ],
)
def test_active_parameters_as_published(name: str, billions: float) -> None:
    """Model cards and papers print two digits."""
    entry = next(entry for entry in catalogue() if entry.name == name)
    assert active_parameters(entry.spec()) / 1e9 == pytest.approx(billions, rel=0.02)


def test_dense_models_use_every_parameter() -> None:
    """Without experts all parameters are active."""
    spec = replace(small_spec("mixtral"), model_type="llama", num_experts=0, num_experts_per_tok=0)
    assert active_parameters(spec) == count(spec)


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss", "deepseek-v3", "dbrx"])
def test_expert_parallelism_divides_experts(family: str) -> None:
    """Two ranks hold half of the routed experts each and everything else twice."""
    spec = small_spec(family)
    whole, halved = count(spec), count(spec, Treatment(expert=2))
    all_but_half = replace(spec, num_experts_per_tok=spec.num_experts // 2)
    assert halved == active_parameters(all_but_half)
    assert halved < whole


@pytest.fixture
def balanced_dbrx(monkeypatch: pytest.MonkeyPatch) -> None:
    """DBRX's loop asks which tokens chose an expert; fake tensors cannot say: all equally many."""
    import torch
    from transformers.models.dbrx import modeling_dbrx

    class Hits:
        def __init__(self, experts: int) -> None:
            self.experts = experts

        def nonzero(self) -> list[list[int]]:
            return [[expert] for expert in range(self.experts)]

    class Balanced:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def greater(self, counts: Any, least: int) -> Hits:
            return Hits(counts.shape[0] - 1)

        def where(self, mask: Any) -> Any:
            experts = FAMILIES["dbrx"]["ffn_config"]["moe_num_experts"]
            return torch.empty((mask.numel() // experts, 2), dtype=torch.long).unbind(1)

    monkeypatch.setattr(modeling_dbrx, "torch", Balanced())


@pytest.mark.usefixtures("balanced_dbrx")
@pytest.mark.parametrize("case", TRACED)
def test_memory_equals_trace(case: str) -> None:
    """The backward peak of a whole step to the byte, the forward peak to one hidden state.

    The model's forward holds the embedding's output to its end (``inputs_embeds``); where no layer
    keeps it, the plan lets it go after the first.
    """
    from vram_plan.bench.trace import TraceConfig, trace_step

    family, options = TRACED[case]
    trace = trace_step(
        TraceConfig(config=hf_config(family), batch=2, seq=64, steps=1, clip=None, **options)
    )
    spec = small_spec(family)
    forward, backward = planned_peaks(spec, options, batch=2, seq=64)
    peaks = trace.phase_peaks
    held = 2 * 64 * spec.hidden_size * DTYPE_BYTES[options["dtype"]]
    missing = max(peaks["forward"], peaks["loss"]) - trace.start_bytes - forward
    assert missing in (0, held)
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
    )
    composition = compose(spec)
    recomputed = options.get("checkpointing", "none")
    links = build_chain(spec, composition, how, Shape(batch=batch, seq=seq, checkpoint=recomputed))
    kept = passing = 0
    for tensor in composition.shared(Forward(spec, how, batch=batch, seq=seq)).values():
        size = -(-tensor.numel * tensor.itemsize // 512) * 512
        if tensor.saved or recomputed != "none":
            kept += 0 if tensor.layers else size  # some layers' are among the moments
        else:
            passing += size
    found = moments(links)
    forward = max(found[FORWARD].total + passing, found[LOSS].total)
    backward = max(
        moment.total
        for instant, moment in found.items()
        if instant not in (FORWARD, LOSS, EMBEDDING_BACKWARD)
    )
    return forward + kept, backward + kept
