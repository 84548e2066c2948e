"""The fake trace against the CPU allocator's own events, on the same steps.

What is left between them is host memory that autograd keeps on a CPU but not on a GPU: scalars of
``x * 0.5`` (512 bytes each after rounding) and the generator's state of every checkpoint.
"""

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step

CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"attention": "sdpa"}),
    ("gpt2", {"attention": "eager", "method": "lora"}),
    ("bert", {"attention": "sdpa", "optimizer": "sgd-momentum"}),
    ("t5", {"attention": "sdpa", "method": "prefix"}),
    ("t5", {"attention": "eager", "checkpointing": "full"}),
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_fake_trace_equals_real_step(
    shapes: dict[str, dict[str, Any]], family: str, options: dict[str, Any]
) -> None:
    config = TraceConfig(
        config=shapes[family], batch=2, seq=128, dtype="fp32", rules="cpu", **options
    )
    fake = trace_step(config)
    real = trace_step(replace(config, device="cpu"))
    assert fake.start_bytes == real.start_bytes
    assert fake.peak_phase == real.peak_phase
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=1e-3)
    assert fake.phase_peaks["step"] == pytest.approx(real.phase_peaks["step"], rel=1e-3)
