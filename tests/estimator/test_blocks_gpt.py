"""The families around GPT-2: parameters and memory as transformers and a traced step have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Link, Shape, build_chain
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.inventory import take_inventory
from vram_plan.estimator.methods.base import Method
from vram_plan.estimator.methods.lora import Lora
from vram_plan.estimator.step import EMBEDDING_BACKWARD, FORWARD, LOSS, moments
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import catalogue

WORDS = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = WORDS | {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 320,
    "max_position_embeddings": 256,
}
GPT = WORDS | {"n_embd": 128, "n_layer": 3, "n_head": 8, "n_positions": 256}
NEO = WORDS | {"hidden_size": 128, "num_layers": 2, "num_heads": 8, "intermediate_size": 320}
OPT = SMALL | {"ffn_dim": 320, "word_embed_proj_dim": 128}
FALCON = SMALL | {"ffn_hidden_size": 320, "num_kv_heads": 2}
DROPOUTS = {"residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_inner": 320} | GPT,
    "gpt2-untied": {"model_type": "gpt2", "tie_word_embeddings": False} | GPT,
    "gpt_neo": {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 1]]} | NEO,
    "gptj": {"model_type": "gptj", "rotary_dim": 8} | GPT,
    "codegen": {"model_type": "codegen", "rotary_dim": 8} | GPT,
    "gpt_neox": {"model_type": "gpt_neox"} | SMALL,
    "gpt_neox-serial": {"model_type": "gpt_neox", "use_parallel_residual": False}
    | SMALL
    | {"hidden_act": "gelu_fast"},
    "opt": {"model_type": "opt"} | OPT,
    "opt-350m": {"model_type": "opt", "do_layer_norm_before": False}
    | OPT
    | {"word_embed_proj_dim": 64},
    "opt-no-bias": {"model_type": "opt", "enable_bias": False} | OPT,
    "bloom": {"model_type": "bloom", "hidden_size": 128, "n_layer": 3, "n_head": 8} | WORDS,
    "mpt-clip": {
        "model_type": "mpt",
        "d_model": 128,
        "n_layers": 3,
        "n_heads": 8,
        "attn_config": {"clip_qkv": 8.0},
    }
    | WORDS,
    "mpt": {"model_type": "mpt", "d_model": 128, "n_layers": 3, "n_heads": 8, "max_seq_len": 256}
    | WORDS,
    "gpt_bigcode": {"model_type": "gpt_bigcode"} | GPT,
    "gpt_bigcode-heads": {"model_type": "gpt_bigcode", "multi_query": False} | GPT,
    "falcon-7b": {"model_type": "falcon"} | FALCON,
    "falcon-40b": {"model_type": "falcon", "new_decoder_architecture": True} | FALCON,
    "falcon-11b": {
        "model_type": "falcon",
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
    }
    | FALCON,
    "falcon-rw": FALCON
    | {
        "model_type": "falcon",
        "num_kv_heads": 8,
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    },
    "phi": {"model_type": "phi"} | SMALL,
    "phi-norms": {"model_type": "phi", "qk_layernorm": True} | SMALL,
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True, "num_key_value_heads": 8} | SMALL,
    "stablelm-12b": {
        "model_type": "stablelm",
        "num_key_value_heads": 2,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    }
    | SMALL,
    "starcoder2": {"model_type": "starcoder2", "num_key_value_heads": 2} | SMALL | DROPOUTS,
    "starcoder2-window": {"model_type": "starcoder2", "sliding_window": 32} | SMALL,
}
DTYPE_BYTES = {"bf16": 2, "fp32": 4}
LOSS_AND_GRADIENT = 2 * 512
"""The loss, named in the training loop, and the gradient it starts from."""

BF16, FP32 = {"dtype": "bf16"}, {"dtype": "fp32"}
SDPA, EAGER, FLASH = {"attention": "sdpa"}, {"attention": "eager"}, {"attention": "flash"}
FULL = {"checkpointing": "full"}
AUTOCAST = {"dtype": "fp32", "autocast": "bf16"}
TRACED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-flash-lora": ("gpt2", BF16 | FLASH | {"method": "lora"}),
    "gpt_neo": ("gpt_neo", BF16 | EAGER),
    "gptj": ("gptj", BF16 | EAGER),
    "codegen-checkpointed": ("codegen", BF16 | EAGER | FULL),
    "gpt_neox-checkpointed": ("gpt_neox", BF16 | SDPA | FULL),
    "gpt_neox-serial-flash": ("gpt_neox-serial", BF16 | FLASH),
    "opt-fp32": ("opt", FP32 | SDPA),
    "bloom": ("bloom", BF16 | EAGER),
    "mpt-clip": ("mpt-clip", BF16 | EAGER),
    "gpt_bigcode": ("gpt_bigcode", BF16 | SDPA),
    "falcon-7b-eager": ("falcon-7b", BF16 | EAGER),
    "falcon-40b-masked": ("falcon-40b", BF16 | SDPA),
    "falcon-rw": ("falcon-rw", FP32 | EAGER),
    "phi-autocast": ("phi", AUTOCAST | SDPA),
    "stablelm-12b": ("stablelm-12b", BF16 | FLASH),
    "starcoder2-checkpointed": ("starcoder2", BF16 | SDPA | FULL),
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
    """Every weight is there, once."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # transformers has no types here
        model = AutoModelForCausalLM.from_config(hf_config(family))  # type: ignore[no-untyped-call]
    spec = small_spec(family)
    links = build_chain(spec, compose(spec), Treatment(), Shape(batch=1, seq=64))
    assert take_inventory(links).numel() == sum(p.numel() for p in model.parameters())


def test_parameters_equal_published() -> None:
    """The catalogue's models of these families have as many weights as were published."""
    kinds = {fields["model_type"] for fields in FAMILIES.values()}
    entries = [entry for entry in catalogue() if entry.spec().model_type in kinds]
    assert len(entries) >= 50
    for entry in entries:
        spec = entry.spec()
        links = build_chain(spec, compose(spec), Treatment(), Shape(batch=1, seq=64))
        assert take_inventory(links).numel() == entry.parameters, entry.name


@pytest.mark.parametrize("case", TRACED)
def test_memory_equals_trace(case: str) -> None:
    """Forward and backward peaks of a whole step, to the byte."""
    from vram_plan.bench.trace import TraceConfig, trace_step

    family, options = TRACED[case]
    trace = trace_step(
        TraceConfig(config=hf_config(family), batch=2, seq=64, steps=1, clip=None, **options)
    )
    forward, backward = planned_peaks(small_spec(family), options, batch=2, seq=64)
    peaks = trace.phase_peaks
    assert trace.start_bytes + forward == max(peaks["forward"], peaks["loss"])
    assert trace.start_bytes + backward + LOSS_AND_GRADIENT == peaks["backward"]


def planned_peaks(
    spec: ModelSpec, options: Mapping[str, Any], *, batch: int, seq: int
) -> tuple[int, int]:
    """Bytes above what lives all the time: at the fullest forward and backward moment."""
    nbytes = DTYPE_BYTES[options["dtype"]]
    lora = options.get("method") == "lora"
    how = Treatment(
        method=Lora(rank=16, targets="all-linear") if lora else Method(),
        compute_bytes=nbytes,
        weights_bytes=nbytes,
        norm_bytes=nbytes,
        autocast="autocast" in options,
        attention=options["attention"],
    )
    composition = compose(spec)
    recomputed = options.get("checkpointing", "none")
    shape = Shape(batch=batch, seq=seq, checkpoint=recomputed)
    links = build_chain(spec, composition, how, shape)
    f = Forward(spec, how, batch=batch, seq=seq)
    kept = passing = 0
    for name, tensor in composition.shared(f).items():
        rounded = -(-tensor.numel * tensor.itemsize // 512) * 512
        if name == "buffers":
            continue  # there from the start
        if tensor.saved or (recomputed != "none" and name not in HELD_BY_THE_MODEL):
            kept += rounded
        else:
            passing += rounded
    return _peaks(links, kept, passing)


HELD_BY_THE_MODEL = ("inputs_embeds", "position_embeds", "slopes", "ones")
"""Local variables of ``forward`` that no layer is given, so that no checkpoint keeps them."""


def _peaks(links: tuple[Link, ...], kept: int, passing: int) -> tuple[int, int]:
    found = moments(links)
    forward = max(found[FORWARD].total + passing, found[LOSS].total)
    backward = max(
        moment.total
        for instant, moment in found.items()
        if instant not in (FORWARD, LOSS, EMBEDDING_BACKWARD)
    )
    return forward + kept, backward + kept
