"""Shallow traces of sharded models extended against traces of the whole depth."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_deep, trace_step

CASES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp", "ranks": 4},
    "fsdp2": {"engine": "fsdp2", "ranks": 4, "dtype": "fp32", "compute_dtype": "bf16"},
    "fsdp2, checkpoints": {"engine": "fsdp2", "ranks": 3, "checkpointing": "full"},
    "fsdp2, adapters": {"engine": "fsdp2", "ranks": 4, "method": "lora"},
}


@pytest.mark.parametrize("case", CASES)
def test_extension_is_exact(shapes: dict[str, dict[str, Any]], case: str) -> None:
    shape = {**shapes["llama"], "num_hidden_layers": 6}
    config = TraceConfig(config=shape, batch=2, seq=48, attention="flash", **CASES[case])
    deep, whole = trace_deep(config), trace_step(config)
    assert deep.extended_from == (3, 4)
    assert deep.parameters == whole.parameters
    assert deep.trainable_parameters == whole.trainable_parameters
    # DDP's buckets and the gradient norm's partial results are rounded up once, not per layer
    assert deep.start_bytes == pytest.approx(whole.start_bytes, abs=1024)
    for phase, peak in whole.phase_peaks.items():
        assert deep.phase_peaks[phase] == pytest.approx(peak, abs=2048 if phase == "clip" else 1024)
    if case != "ddp":
        assert deep.components() == whole.components()
