"""The GPU's path: with counters that stand for a GPU's, and on a GPU where there is one."""

from typing import Any

import pytest
import torch

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.bench.trace.gpu import GpuWatch, trace_gpu

MIB = 2**20


class Counted:
    """Counters that a test sets."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.calls: list[str] = []

    def use(self, most: int, left: int) -> None:
        self.peak = max(self.peak, most)
        self.now = left

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def memory_allocated(self) -> int:
        return self.now

    def max_memory_allocated(self) -> int:
        return self.peak

    def max_memory_reserved(self) -> int:
        return -(-self.peak // (2 * MIB)) * 2 * MIB

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")
        self.peak = self.now


def test_every_phase_has_its_own_peak() -> None:
    counters = Counted()
    counters.use(9 * MIB, 3 * MIB)
    watch = GpuWatch(counters)
    for phase, most, left in (("forward", 8, 6), ("loss", 7, 7), ("step", 5, 3)):
        watch.enter(phase)
        counters.use(most * MIB, left * MIB)
        watch.mark(f"{phase}_end")
    watch.close()
    assert watch.start_bytes == 3 * MIB
    assert [(e.phase, e.live // MIB) for e in watch.events] == [
        ("forward", 8),
        ("loss", 7),
        ("step", 7),  # what the loss left
    ]
    assert watch.reserved == {"forward": 8 * MIB, "loss": 8 * MIB, "step": 8 * MIB}
    assert watch.marks == {"forward_end": 0, "loss_end": 1, "step_end": 2}


def test_a_step_under_counted_memory(shapes: dict[str, dict[str, Any]]) -> None:
    """The whole path, tensors on the CPU."""
    counters = Counted()
    config = TraceConfig(config=shapes["llama"], seq=32, dtype="fp32", device="cuda")
    trace = trace_gpu(config, counters)
    assert trace.phases == ("forward", "loss", "backward", "clip", "step", "zero_grad")
    assert set(trace.marks) == {"forward_end", "loss_end", "backward_end", "step_end"}
    assert trace.parameters == trace.trainable_parameters > 0
    assert trace.reserved_bytes == 0
    assert counters.calls[0] == "synchronize"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu(shapes: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="sees no GPU here; choose device fake"):
        trace_step(TraceConfig(config=shapes["llama"], device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"checkpointing": "full"},
        {"checkpointing": "selective"},
        {"checkpointing": "offload"},
        {"offload": "activations"},
        {"method": "lora"},
        {"method": "lora", "quantization": "nf4"},
        {"dtype": "fp32", "autocast": "bf16"},
    ],
)
def test_fake_trace_equals_a_gpu(
    shapes: dict[str, dict[str, Any]], options: dict[str, Any]
) -> None:
    """Wide enough that cuBLAS's workspace, which stays allocated, is small beside the rest."""
    shape = {**shapes["llama"], "hidden_size": 1024, "intermediate_size": 4096}
    fields: dict[str, Any] = {"config": shape, "batch": 4, "seq": 1024, **options}
    fake = trace_step(TraceConfig(**fields))
    real = trace_gpu(TraceConfig(**fields, device="cuda"))
    assert fake.peak_bytes == pytest.approx(real.peak_bytes, rel=0.05)
