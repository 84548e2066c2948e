"""What variables, caches and waiting gradients hold: the closed form against the trace."""

from typing import Any

import pytest

from vram_plan.bench.trace import trace_step
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.step import BACKWARD_FIRST, FORWARD
from vram_plan.profiles.hf_config import from_hf_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
EXPERTS = LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
QWEN2_MOE = EXPERTS | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 32}
QWEN3_MOE = EXPERTS | {"model_type": "qwen3_moe", "head_dim": 16}
TWO = LLAMA | {"num_hidden_layers": 2}
PREFIX = {"method": "prefix", "virtual_tokens": 24, "precision": "fp32"}
LORA = {"method": "lora", "lora_rank": 8, "precision": "bf16"}
RANKS = {"engine": "fsdp2", "gpus": 4, "fsdp": "full-shard", "weights_dtype": "bf16"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # The first block's prefix comes from the table of all: their gradients wait for it.
    "gradients of prefixes wait": (BACKWARD_FIRST, TWO, PREFIX | {"offload": "activations"}),
    "the cache's copies take the names of keys and values": (FORWARD, LLAMA, PREFIX),
    "a mask with a window and one without": (FORWARD, QWEN2_MOE, {"method": "bitfit"}),
    "expert weights with their pairs stay for the block": (
        FORWARD,
        QWEN3_MOE,
        LORA | {"checkpointing": "full"},
    ),
    "embeddings asked for a gradient are one tensor": (
        FORWARD,
        LLAMA,
        LORA | {"checkpointing": "offload", "attention": "flash"},
    ),
    "and are there while the first block is gathered": (
        FORWARD,
        LLAMA | {"vocab_size": 8000},
        LORA | RANKS | {"checkpointing": "offload", "attention": "flash"},
    ),
}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_trace(case: str) -> None:
    """In the instant that the case is about."""
    instant, raw, options = CASES[case]
    given = {"micro_batch": 2, "seq_len": 64, "attention": "eager", "optimizer": "sgd", **options}
    config = resolve(from_hf_config(raw, name="test", source="test"), given)
    planned, trace = plan_config(config).memory, trace_step(trace_config(config, raw))
    seen = {one.name: one.bytes for one in trace.instants}
    # Rotary frequencies, the loss and its gradient: blocks of the smallest size.
    assert planned.instants[instant] == pytest.approx(seen[instant], abs=9 * 512)
