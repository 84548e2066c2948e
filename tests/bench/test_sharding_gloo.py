"""Sharded fake traces against real ranks: two processes, gloo, the CPU allocator's own events.

What is left between them is what is left on one process: scalars and the generator's state of
every checkpoint, in host memory on a GPU.
"""

from typing import Any

import pytest

from vram_plan.bench.trace import Trace, TraceConfig, trace_step
from vram_plan.bench.trace.sharding.gloo import trace_ranks

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp", "ranks": 2},
    "ddp, adapters": {"engine": "ddp", "ranks": 2, "method": "lora"},
    "fsdp2": {"engine": "fsdp2", "ranks": 2},
    "fsdp2, checkpoints": {"engine": "fsdp2", "ranks": 2, "checkpointing": "full"},
    "fsdp2, mixed precision": {"engine": "fsdp2", "ranks": 2, "compute_dtype": "bf16"},
    "fsdp2, kept gathered": {"engine": "fsdp2", "ranks": 2, "fsdp": "grad-op", "grad_accum": 2},
    "fsdp2, adapters": {"engine": "fsdp2", "ranks": 2, "method": "lora"},
    "tp": {"tp": 2},
}

#: The CPU multiplies bf16 matrices by way of an fp32 copy of the result; GPUs have units for it.
KERNELS = {("fsdp2, mixed precision", "forward"): 0.03}


def config(case: str) -> TraceConfig:
    return TraceConfig(
        config=LLAMA,
        batch=2,
        seq=192,
        dtype="fp32",
        attention="eager",
        rules="cpu",
        **CASES[case],
    )


@pytest.fixture(scope="module")
def real() -> dict[str, Trace]:
    """All cases, by one pair of processes."""
    return dict(zip(CASES, trace_ranks(*map(config, CASES)), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_rank_0_allocates_what_the_trace_says(real: dict[str, Trace], case: str) -> None:
    fake, ranks = trace_step(config(case)), real[case]
    assert fake.start_bytes == pytest.approx(ranks.start_bytes, abs=1024)
    assert fake.peak_phase == ranks.peak_phase
    for phase, peak in fake.phase_peaks.items():
        bound = KERNELS.get((case, phase), 1e-3)
        assert peak == pytest.approx(ranks.phase_peaks[phase], rel=bound), phase


def test_ranks_of_one_number() -> None:
    with pytest.raises(ValueError, match=r"have \[2, 4\] ranks"):
        trace_ranks(config("tp"), TraceConfig(config=LLAMA, engine="ddp", ranks=4))
