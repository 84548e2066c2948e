"""Gradients that are added up, masks that widen scores: the closed form beside the tracer."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.step import BACKWARD_FIRST, EMBEDDING_BACKWARD, FORWARD, LOSS
from vram_plan.profiles.hf_config import from_hf_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4000,
}
OLMO2 = LLAMA | {"model_type": "olmo2", "vocab_size": 300}
BASE = {"micro_batch": 2, "seq_len": 192, "attention": "eager", "optimizer": "sgd"}
CHUNKED = {"method": "full", "loss": "chunked", "checkpointing": "full"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Two chunks' gradients of the head are one sum, beside the earlier micro-batch's gradient.
    "chunks, accumulated": (LLAMA, {**CHUNKED, "precision": "fp32", "grad_accum": 2}),
    "chunks, accumulated under autocast": (
        LLAMA,
        {**CHUNKED, "precision": "bf16", "weights_dtype": "fp32", "grad_accum": 2},
    ),
    # A gradient that is a view is not added to in place: three of the head's for a moment.
    "chunks, wide": (
        LLAMA | {"hidden_size": 512},
        {**CHUNKED, "precision": "fp32"},
    ),
    # Scores of 16-bit queries take the fp32 mask's type.
    "queries cast back": (
        OLMO2,
        {"method": "freeze", "freeze_layers": 0, "precision": "fp16", "weights_dtype": "fp32"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_trace(name: str) -> None:
    raw, options = CASES[name]
    config = resolve(from_hf_config(raw, name="test", source="test"), BASE | options)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, raw))
    # Rotary frequencies, the loss, its gradient, sums of chunks: blocks of the smallest size.
    assert planned.allocated_bytes == pytest.approx(trace.peak_bytes, abs=9 * 512)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "autocast"])
@pytest.mark.parametrize(
    ("loss", "seq_len"), [("hf", 192), ("chunked", 192), ("chunked", 64), ("liger", 192)]
)
def test_a_tied_head_waits_for_the_lookup(loss: str, seq_len: int, precision: str) -> None:
    """A view is summed with the lookup's gradient into a third table, anything else in place."""
    raw = LLAMA | {"tie_word_embeddings": True}
    options = BASE | {"loss": loss, "seq_len": seq_len, "method": "full"}
    narrow = "bf16" if precision == "autocast" else precision
    options |= {"precision": narrow, "weights_dtype": "fp32" if precision == "autocast" else narrow}
    _same_in(EMBEDDING_BACKWARD, raw, options)


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
@pytest.mark.parametrize("loss", ["hf", "fused-ce"])
def test_a_loss_of_weights_has_its_own_tape(loss: str, precision: str) -> None:
    """AdaLoRA's part of the loss is made while the model's logits are held."""
    narrow = "bf16" if precision == "autocast" else precision
    options = BASE | {"method": "adalora", "loss": loss, "precision": narrow, "micro_batch": 1}
    options |= {"weights_dtype": "fp32", "seq_len": 64, "lora_rank": 32}
    _same_in(LOSS, LLAMA, options | {"lora_targets": "all-linear"})


@pytest.mark.parametrize("gpus", [2, 8])
def test_whole_gradients_go_before_all_shards_are_there(gpus: int) -> None:
    """FSDP 2 copies them into a buffer, lets go of them and makes the shards then."""
    options = BASE | {"method": "full", "precision": "fp32", "engine": "fsdp2", "gpus": gpus}
    _same_in(EMBEDDING_BACKWARD, LLAMA | {"vocab_size": 20_000}, options | {"fsdp": "full-shard"})


WRITTEN: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64},
    # A single key head is a view until the product with it copies.
    "one key head": {"model_type": "starcoder2", "num_key_value_heads": 1},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_scores_are_there_until_the_probabilities_are_cast(name: str) -> None:
    """``softmax(scores, dtype=float32).to(query.dtype)`` is one expression."""
    options = BASE | {"method": "lora", "precision": "fp16", "weights_dtype": "fp32"}
    _same_in(FORWARD, LLAMA | WRITTEN[name], options | {"offload": "activations"})


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
def test_factors_of_expert_stacks_come_back_from_the_host() -> None:
    """``save_on_cpu`` copies weights too, and a product's factors come back together."""
    raw = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    options = BASE | {"method": "qlora", "precision": "fp32", "quantization": "nf4"}
    _same_in(
        BACKWARD_FIRST, raw, options | {"offload": "activations", "lora_targets": "all-linear"}
    )


def _same_in(instant: str, raw: dict[str, Any], options: dict[str, Any]) -> None:
    """Plan and trace have as many bytes alive in an instant, but for the smallest blocks."""
    config = resolve(from_hf_config(raw, name="test", source="test"), options)
    trace = trace_step(trace_config(config, raw))
    traced = {found.name: found.bytes for found in trace.instants}
    planned = plan_config(config).memory.instants
    assert planned[instant] == pytest.approx(traced[instant], abs=9 * 512)


def test_a_prefix_widens_keys_beside_narrow_queries() -> None:
    """Which flash attention refuses, so that the plan does."""
    options = BASE | {"method": "prefix", "precision": "bf16", "weights_dtype": "fp32"}
    spec = from_hf_config(OLMO2, name="test", source="test")
    with pytest.raises(ValueError, match="--attention flash: under autocast the prefix"):
        resolve(spec, options | {"attention": "flash"})
    resolve(spec, options | {"lora_targets": "all-linear"})
    step = TraceConfig(
        config=OLMO2,
        batch=2,
        seq=32,
        method="prefix",
        dtype="fp32",
        autocast="bf16",
        attention="flash",
    )
    with pytest.raises(ValueError, match="keys and values of one dtype"):
        trace_step(step)
