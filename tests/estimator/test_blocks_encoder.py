"""Encoders and encoder-decoders: parameters as transformers counts them, memory as traced."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Link, Shape, build_chain
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.step import FORWARD, LOSS, moments
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import catalogue

BERT: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 320,
    "vocab_size": 512,
    "max_position_embeddings": 192,
}
DISTIL = {"dim": 128, "n_layers": 3, "n_heads": 4, "hidden_dim": 320, "vocab_size": 512}
SPECIAL = {
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
BART = SPECIAL | {
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 320,
    "decoder_ffn_dim": 256,
    "vocab_size": 512,
    "max_position_embeddings": 192,
}
T5 = {
    "d_model": 128,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "d_kv": 48,
    "d_ff": 320,
    "vocab_size": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
GATED = {"feed_forward_proj": "gated-gelu"}
TWO_VOCABULARIES = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 320}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": BERT | {"model_type": "bert"},
    "roberta": BERT | {"model_type": "roberta", "pad_token_id": 1},
    "xlm-roberta": BERT | {"model_type": "xlm-roberta", "type_vocab_size": 1},
    "electra": BERT | {"model_type": "electra", "embedding_size": 64},
    "electra-wide": BERT | {"model_type": "electra", "embedding_size": 128},
    "distilbert": DISTIL | {"model_type": "distilbert"},
    "albert": BERT | {"model_type": "albert", "embedding_size": 64},
    "albert-groups": BERT
    | {"model_type": "albert", "embedding_size": 64, "num_hidden_layers": 4}
    | {"num_hidden_groups": 2, "inner_group_num": 2},
    "t5": T5 | {"model_type": "t5"},
    "t5-gated": T5 | GATED | {"model_type": "t5"},
    "mt5": T5 | {"model_type": "mt5"},
    "umt5": T5 | {"model_type": "umt5"},
    "bart": BART | {"model_type": "bart"},
    "mbart": BART | {"model_type": "mbart"},
    "pegasus": BART | {"model_type": "pegasus"},
    "marian": BART | {"model_type": "marian"},
    "marian-two": BART | TWO_VOCABULARIES | {"model_type": "marian"},
}
PUBLISHED = {family.removesuffix("-two") for family in FAMILIES}
MASKED = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert")
DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
SLACK = 2 * 512
"""The loss, named in the training loop, and the gradient it starts from; index tensors."""
LORA_SLACK = 8 * 512
"""Going forward, PEFT's narrow activations live a little longer or shorter than planned."""
LINGERING = 2 * 4 * 64 * 48 * 2
"""Checkpointed T5: its zeros between target and source and their gradient outlive the decoder."""

BF16 = {"dtype": "bf16", "attention": "sdpa"}
EAGER = {"dtype": "bf16", "attention": "eager"}
AUTOCAST = {"dtype": "fp32", "autocast": "bf16", "attention": "eager"}
FULL = {"checkpointing": "full"}
TRACED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-eager": ("bert", EAGER),
    "roberta-flash-checkpointed": ("roberta", BF16 | {"attention": "flash"} | FULL),
    "electra-autocast": ("electra", AUTOCAST),
    "distilbert-fp32": ("distilbert", {"dtype": "fp32", "attention": "sdpa"}),
    "albert": ("albert-groups", BF16),
    "t5": ("t5", BF16),
    "t5-checkpointed": ("t5", BF16 | FULL),
    "mt5-autocast": ("mt5", AUTOCAST),
    "umt5-eager-checkpointed": ("umt5", EAGER | FULL),
    "bart-eager-checkpointed": ("bart", EAGER | FULL),
    "mbart": ("mbart", BF16),
    "pegasus-autocast": ("pegasus", AUTOCAST),
    "marian-flash": ("marian", BF16 | {"attention": "flash"}),
    "marian-two": ("marian-two", EAGER),
}
LORA: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "bert": ("bert", ("query", "value"), BF16),
    "bart-checkpointed": ("bart", ("q_proj", "v_proj"), BF16 | FULL),
    "t5-checkpointed": ("t5", ("q", "v"), EAGER | FULL),
}


def hf_config(family: str) -> Any:
    """The family's small configuration as a transformers object."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**FAMILIES[family])


def small_spec(family: str) -> ModelSpec:
    """The same as a `ModelSpec`, read from what transformers would publish."""
    return from_hf_config(hf_config(family).to_dict(), name=family)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_equal_transformers(family: str) -> None:
    """Every weight is there, once: tied heads and tables, shared blocks, frozen positions."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    spec = small_spec(family)
    auto = AutoModelForSeq2SeqLM if spec.is_encoder_decoder else AutoModelForMaskedLM
    with torch.device("meta"):
        build: Any = auto.from_config
        model = build(hf_config(family))
    inventory = take_inventory(_links(spec, BF16, Method()))
    assert inventory.numel() == sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert inventory.numel(trainable=True) == trainable


@pytest.mark.parametrize(
    "name", [e.name for e in catalogue() if e.spec().model_type in PUBLISHED], ids=str
)
def test_parameters_equal_published(name: str) -> None:
    """The catalogue's models, among them untied heads that transformers ties when built anew."""
    entry = next(entry for entry in catalogue() if entry.name == name)
    assert take_inventory(_links(entry.spec(), BF16, Method())).numel() == entry.parameters


@pytest.mark.parametrize("case", TRACED)
def test_memory_equals_trace(case: str) -> None:
    """Forward and backward peaks and the gradients of a whole step of the real model."""
    family, options = TRACED[case]
    _compare(family, options, Method())


@pytest.mark.parametrize("case", LORA)
def test_lora_equals_trace(case: str) -> None:
    """The same with frozen weights; checkpointed models ask for gradients of their tokens."""
    family, targets, options = LORA[case]
    peft = {"method": "lora", "lora": {"r": 8, "target_modules": list(targets)}}
    _compare(family, options, Lora(rank=8, targets=",".join(targets)), peft)


def _compare(
    family: str, options: dict[str, Any], method: Method, peft: dict[str, Any] | None = None
) -> None:
    from vram_plan.bench.trace import TraceConfig, trace_step

    spec = small_spec(family)
    config = TraceConfig(
        config=hf_config(family),
        batch=2,
        seq=48 if spec.is_encoder_decoder else 64,
        target_seq=64 if spec.is_encoder_decoder else None,
        task="masked-lm" if spec.model_type in MASKED else None,
        steps=1,
        clip=None,
        **options,
        **(peft or {}),
    )
    trace = trace_step(config)
    links = _links(spec, options, method)
    forward, backward = _peaks(links)
    peaks, start = trace.phase_peaks, trace.start_bytes
    assert trace.trainable_parameters == take_inventory(links).numel(trainable=True)
    lingering = LINGERING if spec.model_type == "t5" and "checkpointing" in options else 0
    difference = max(peaks["forward"], peaks["loss"]) - start - forward
    assert abs(difference) <= (LORA_SLACK if peft else SLACK)
    assert 0 <= peaks["backward"] - start - backward <= SLACK + lingering


def _links(spec: ModelSpec, options: dict[str, Any], method: Method) -> tuple[Link, ...]:
    nbytes = DTYPE_BYTES[options["dtype"]]
    how = Treatment(
        method=method,
        compute_bytes=nbytes,
        weights_bytes=nbytes,
        norm_bytes=nbytes,
        buffer_bytes=nbytes,
        autocast="autocast" in options,
        half=options["dtype"] == "fp16",
        attention=options["attention"],
    )
    recomputed = options.get("checkpointing", "none")
    seq, source = (64, 48) if spec.is_encoder_decoder else (64, 0)
    shape = Shape(batch=2, seq=seq, source_seq=source, checkpoint=recomputed)
    return build_chain(spec, compose(spec), how, shape)


def _peaks(links: tuple[Link, ...]) -> tuple[int, int]:
    """Bytes above what lives all the time: at the fullest forward and backward moment."""
    found = moments(links)
    forward = max(found[FORWARD].total, found[LOSS].total)
    backward = (m.total for instant, m in found.items() if instant not in (FORWARD, LOSS))
    return forward, max(backward)


def test_encoder_output_counts_once() -> None:
    """The first block of the decoder keeps it for all; only the last one finds no gradient."""
    links = _links(small_spec("bart"), BF16, Method())
    decoder = [link for link in links if link.segment.name == "model.decoder.layers"]
    output = 2 * 48 * 128 * 2
    first, middle, last = (link.cost for link in decoder)
    assert first.kept == {"encoder"}
    assert sum(first.saved.values()) - sum(middle.saved.values()) == output
    assert middle.saved == last.saved
    assert sum(middle.backward.values()) > sum(last.backward.values())


def test_lengths_are_their_own() -> None:
    """The source's length moves the encoder and the cross-attention, not the logits."""
    spec = small_spec("t5")
    short, long = (
        build_chain(spec, compose(spec), Treatment(), Shape(batch=2, seq=64, source_seq=source))
        for source in (64, 128)
    )
    for a, b in zip(short, long, strict=True):
        grows = sum(b.cost.saved.values()) > sum(a.cost.saved.values())
        assert grows == (a.segment.stack == "encoder" or a.segment.kind == "layer")
