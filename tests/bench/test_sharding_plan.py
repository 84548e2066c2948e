"""The closed form against sharded traces, phase by phase."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.estimator import plan
from vram_plan.profiles.hf_config import from_hf_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8000,
}
PHASES = {
    "loss": ("loss",),
    "backward": (
        "loss_backward",
        "backward_last_layer",
        "backward_first_layer",
        "embedding_backward",
    ),
    "clip": ("gradient_clipping",),
    "step": ("optimizer_step",),
}
#: The plan's options and the trace's.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddp": (
        {"engine": "ddp", "gpus": 4, "weights_dtype": "bf16"},
        {"engine": "ddp", "ranks": 4},
    ),
    "ddp, autocast": (
        {"engine": "ddp", "gpus": 4, "weights_dtype": "fp32"},
        {"engine": "ddp", "ranks": 4, "dtype": "fp32", "autocast": "bf16"},
    ),
    "ddp, adapters": (
        {"engine": "ddp", "gpus": 4, "method": "lora"},
        {"engine": "ddp", "ranks": 4, "method": "lora"},
    ),
    "fsdp2, nodes": (
        {
            "engine": "fsdp2",
            "fsdp": "hybrid-shard",
            "gpus": 8,
            "gpus_per_node": 4,
            "weights_dtype": "fp32",
        },
        {
            "engine": "fsdp2",
            "ranks": 8,
            "fsdp": "hybrid-shard",
            "ranks_per_node": 4,
            "dtype": "fp32",
            "compute_dtype": "bf16",
        },
    ),
    "fsdp2, pure bf16": (
        {"engine": "fsdp2", "fsdp": "full-shard", "gpus": 8, "weights_dtype": "bf16"},
        {"engine": "fsdp2", "ranks": 8},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_plan_equals_trace(case: str) -> None:
    planned, traced = CASES[case]
    spec = from_hf_config(LLAMA, name="small", source="test")
    memory = plan(spec, micro_batch=2, seq_len=256, **planned).memory
    trace = trace_step(TraceConfig(config=LLAMA, batch=2, seq=256, attention="flash", **traced))
    assert memory.allocated_bytes == pytest.approx(trace.peak_bytes, rel=1e-3)
    for phase, instants in PHASES.items():
        expected = max(memory.instants.get(instant, 0) for instant in instants)
        assert expected == pytest.approx(trace.phase_peaks[phase], rel=1e-3), phase
