"""Gradients that are added up, masks that widen scores: the closed form beside the tracer."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.step import EMBEDDING_BACKWARD
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


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("loss", "seq_len"), [("hf", 192), ("chunked", 192), ("chunked", 64), ("liger", 192)]
)
def test_a_tied_head_waits_for_the_lookup(loss: str, seq_len: int, precision: str) -> None:
    """A view is summed with the lookup's gradient into a third table, anything else in place."""
    raw = LLAMA | {"tie_word_embeddings": True}
    options = BASE | {"loss": loss, "seq_len": seq_len, "precision": precision, "method": "full"}
    config = resolve(from_hf_config(raw, name="test", source="test"), options)
    trace = trace_step(trace_config(config, raw))
    traced = {instant.name: instant.bytes for instant in trace.instants}
    ledger = plan_config(config).memory.ledger
    planned = sum(entry.bytes for entry in ledger.at(EMBEDDING_BACKWARD))
    assert planned == pytest.approx(traced[EMBEDDING_BACKWARD], abs=9 * 512)


def test_a_prefix_widens_keys_beside_narrow_queries() -> None:
    """Which flash attention refuses, so that the plan does."""
    options = BASE | {"method": "prefix", "precision": "bf16", "weights_dtype": "fp32"}
    spec = from_hf_config(OLMO2, name="test", source="test")
    with pytest.raises(ValueError, match="--attention flash: under autocast the prefix"):
        resolve(spec, options | {"attention": "flash"})
    resolve(spec, options | {"attention": "sdpa"})
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
