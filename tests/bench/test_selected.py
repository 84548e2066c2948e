"""Selective checkpointing and leaves of the graph: the closed form beside the tracer."""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.hf_config import from_hf_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
SPARSE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}
MT5 = {
    "model_type": "mt5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 2000,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
BASE = {"precision": "bf16", "micro_batch": 2, "seq_len": 64, "optimizer": "sgd"}
WIDE = {"weights_dtype": "fp32"}
SELECTIVE = {"checkpointing": "selective"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Adapters' products are made again, although autocast multiplies copies of their weights.
    "adapters under autocast": (LLAMA, {"method": "dora", **WIDE, **SELECTIVE}),
    # Grouped products are kept, the experts' weights with their pairs are not.
    "experts with pairs": (SPARSE, {"method": "lora", **WIDE, **SELECTIVE}),
    # The memory-efficient kernel's output and log-sum-exp are kept.
    "efficient kernel": (
        LLAMA | {"num_key_value_heads": 4},
        {"method": "full", "precision": "fp32", "attention": "sdpa", **SELECTIVE},
    ),
    # A kept 4-bit product's weight is not written out again.
    "four bits": (LLAMA, {"method": "qlora", "seq_len": 1024, **SELECTIVE}),
    # What the loss makes for the adapters waits beside the gradients that are there, for each
    # weight until its own gradient comes.
    "regularized, accumulated": (LLAMA, {"method": "adalora", "grad_accum": 2, **SELECTIVE}),
    # Embeddings asked for their gradient stay, with it, while the prompt's encoder goes back.
    "prompt encoder": (
        LLAMA,
        {"method": "p-tuning", "prompt_encoder": "lstm", "checkpointing": "full"},
    ),
    # Only the head is a matrix of its own; encoder and decoder share theirs.
    "own head": (MT5, {"method": "full", "attention": "eager", "optimizer": "adamw"}),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize("name", CASES)
def test_equals_the_trace(name: str) -> None:
    raw, options = CASES[name]
    config = resolve(from_hf_config(raw, name="test", source="test"), BASE | options)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, raw))
    # Two tables of rotary frequencies, the loss and its gradient are blocks of the smallest size.
    scalars = 4 * 512
    assert planned.allocated_bytes == pytest.approx(trace.peak_bytes, abs=scalars)


def test_a_loss_that_is_a_module_makes_logits() -> None:
    """DistilBERT's."""
    shape = {"model_type": "distilbert", "dim": 64, "n_layers": 1, "n_heads": 4, "hidden_dim": 128}
    trace = trace_step(TraceConfig(config=shape | {"vocab_size": 2000}, batch=2, seq=64))
    made = [
        e.block for e in trace.events if "log_softmax" in e.block.op and e.block.phase == "loss"
    ]
    assert {block.component for block in made} == {"logits"}


def test_a_shared_bias_under_sdpa_is_refused() -> None:
    """Where the real libraries fail, on real tensors."""
    options = BASE | {"checkpointing": "selective", "attention": "sdpa", "method": "qlora"}
    options |= {"precision": "bf16", "weights_dtype": "fp32", "quantization": "nf4"}
    with pytest.raises(ValueError, match="choose eager"):
        resolve(from_hf_config(MT5, name="test", source="test"), options)
    config = resolve(
        from_hf_config(MT5, name="test", source="test"), options | {"attention": "eager"}
    )
    broken = replace(trace_config(config, MT5), attention="sdpa", rules="cpu", device="cpu")
    with pytest.raises(RuntimeError, match="not found in storage"):
        trace_step(broken)
