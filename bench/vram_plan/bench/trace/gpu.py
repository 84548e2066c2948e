"""A real GPU: the same step on CUDA tensors, read from PyTorch's own counters.

Written from PyTorch's documentation and tested with counters that stand for a GPU's: the figures
of this path have not been compared with a GPU's yet. Counters tell how much was alive in every
phase and not what, so components are left out; a memory snapshot tells more.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from vram_plan.bench.trace.build import build_model, count_parameters, materialize
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.losses import last_before_loss
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.quantized import dora_on_quantized
from vram_plan.bench.trace.step import TrainingStep, make_batch
from vram_plan.bench.trace.timeline import Block, Event, Trace

__all__ = ["Counters", "GpuTrace", "GpuWatch", "trace_gpu"]


class Counters(Protocol):
    """What is used of ``torch.cuda``; every method speaks of the current device."""

    def synchronize(self) -> None:
        """Wait for the kernels."""

    def memory_allocated(self) -> int:
        """Bytes of tensors now."""

    def max_memory_allocated(self) -> int:
        """Their peak since the last reset."""

    def max_memory_reserved(self) -> int:
        """The peak of what the caching allocator holds."""

    def reset_peak_memory_stats(self) -> None:
        """Begin new peaks."""


@dataclass(slots=True, kw_only=True)
class GpuTrace(Trace):
    """A trace with one event for each phase: its peak.

    Attributes:
        reserved_peaks: phase → the caching allocator's peak in it.
        snapshot: ``torch.cuda.memory._snapshot()`` of the measured step, or None.
    """

    reserved_peaks: dict[str, int] = field(default_factory=dict)
    snapshot: dict[str, Any] | None = None

    @property
    def reserved_bytes(self) -> int:
        """The step's peak of reserved memory."""
        return max(self.reserved_peaks.values(), default=0)


class GpuWatch:
    """Reads the counters where one phase ends and another begins."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.restart()

    def restart(self) -> None:
        """Forget the earlier steps."""
        self.counters.synchronize()
        self.phase = ""
        self.events: list[Event] = []
        self.reserved: dict[str, int] = {}
        self.marks: dict[str, int] = {}
        self.start_bytes = self.counters.memory_allocated()
        self.counters.reset_peak_memory_stats()

    def enter(self, phase: str) -> None:
        """A phase begins, so the one before has ended."""
        self.close()
        self.phase = phase
        self.counters.reset_peak_memory_stats()

    def mark(self, name: str) -> None:
        """An instant is reached; between peaks only its place is known."""
        self.marks[name] = len(self.events)

    def close(self) -> None:
        """Note the peaks of the phase that ends."""
        if not self.phase:
            return
        self.counters.synchronize()
        peak = self.counters.max_memory_allocated()
        block = Block(
            number=-1, bytes=0, shape=(), dtype="", op="(phase)", module="", phase=self.phase
        )
        self.events.append(Event(block, 0, peak, self.phase))
        before = self.reserved.get(self.phase, 0)
        self.reserved[self.phase] = max(before, self.counters.max_memory_reserved())


def trace_gpu(
    config: TraceConfig, counters: Counters | None = None, *, snapshot: bool = False
) -> GpuTrace:
    """Run the step on the current GPU; the values are of no matter.

    Args:
        config: what to run.
        counters: ``torch.cuda`` unless a test brings its own; then tensors stay on the CPU.
        snapshot: keep the allocator's history of the measured step too.

    Raises:
        ValueError: where PyTorch sees no GPU.
    """
    if counters is None and not torch.cuda.is_available():
        raise ValueError("device cuda: PyTorch sees no GPU here; choose device fake")
    device = torch.device("cuda" if counters is None else "cpu")
    watch = GpuWatch(counters or torch.cuda)
    started = time.perf_counter()
    with dora_on_quantized(), device:
        step, parameters = _build(config, watch, device)
        batch = make_batch(config)
        for index in range(config.steps):
            records = snapshot and index == config.steps - 1
            if records:
                torch.cuda.memory._record_memory_history()
            watch.restart()
            step.run(batch)
            watch.close()
    found = torch.cuda.memory._snapshot() if snapshot else None
    if snapshot:
        torch.cuda.memory._record_memory_history(enabled=None)
    return GpuTrace(
        start_bytes=watch.start_bytes,
        start_blocks=[],
        events=watch.events,
        marks=watch.marks,
        seconds=time.perf_counter() - started,
        parameters=parameters,
        trainable_parameters=sum(p.numel() for p in step.trainable),
        reserved_peaks=watch.reserved,
        snapshot=found,
    )


def _build(config: TraceConfig, watch: GpuWatch, device: torch.device) -> tuple[TrainingStep, int]:
    model = build_model(config)
    load_libraries()
    parameters = count_parameters(model)
    materialize(model, lambda shape, dtype: torch.full(shape, 0.01, device=device).to(dtype))

    def leave(*_: Any) -> None:
        if watch.phase == "forward":
            watch.mark("forward_end")
            watch.enter("loss")

    last_before_loss(model, config.loss).register_forward_hook(leave)
    step = TrainingStep(config, model, watch, partial(torch.autocast, device.type))
    return step, parameters
