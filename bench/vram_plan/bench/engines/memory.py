"""What a real step allocates: PyTorch's own events on a CPU, its counters on a GPU.

The steps that are watched are not the ones that are timed: on the CPU the profiler slows them, on a
GPU every phase ends with a wait.
"""

from typing import Any

import torch

from vram_plan.bench.instants import instants_of
from vram_plan.bench.trace.gpu import GpuWatch
from vram_plan.bench.trace.losses import last_before_loss
from vram_plan.bench.trace.real import CpuWatch, steps_of

__all__ = ["CpuMemory", "GpuMemory", "Relay", "memory_of"]

#: Losses that multiply by the head themselves.
_HEADLESS = ("chunked", "liger")


class _Nobody:
    """Watches nothing."""

    def enter(self, phase: str) -> None:
        """A phase begins."""

    def mark(self, name: str) -> None:
        """An instant is reached."""


class Relay:
    """Passes on what a loop says while the step is watched, and nothing afterwards."""

    def __init__(self, watch: Any) -> None:
        self.watch = watch
        self.phase = ""

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self.phase = phase
        self.watch.enter(phase)

    def mark(self, name: str) -> None:
        """An instant is reached."""
        self.watch.mark(name)

    def silence(self) -> None:
        """From now on nobody listens."""
        self.watch = _Nobody()

    def follow(self, model: Any, loss: str) -> None:
        """Let the loss begin with the head, as in the plan, or where a loss without one begins."""

        def begin(*_: Any) -> None:
            if self.phase == "forward" and torch.is_grad_enabled():
                self.mark("forward_end")
                self.enter("loss")

        last: torch.nn.Module = last_before_loss(model, loss)
        if loss in _HEADLESS:
            last.register_forward_hook(begin)
        else:
            last.register_forward_pre_hook(begin)


class CpuMemory:
    """The allocator's events, from the making of the model on."""

    def __init__(self) -> None:
        self.relay = Relay(CpuWatch())
        self._profiler: Any = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )

    def start(self) -> None:
        """From now on everything counts."""
        self._profiler.__enter__()

    def stop(self) -> None:
        """Nobody watches any more."""
        self.relay.silence()
        self._profiler.__exit__(None, None, None)

    def begin(self) -> None:
        """A step begins; the last one is kept."""
        self.relay.enter("start")

    def end(self) -> None:
        """The step has ended."""

    def found(self) -> dict[str, Any]:
        """Bytes by instant."""
        trace = steps_of(self._profiler)
        instants = instants_of(trace.events, trace.start_blocks)
        return {"instants": {one.name: one.bytes for one in instants}, "reserved_bytes": None}


class GpuMemory:
    """The counters of the current GPU, and how often its allocator had to start again."""

    def __init__(self, counters: Any = None) -> None:
        self._counters = counters or torch.cuda
        self._gpu = GpuWatch(self._counters)
        self.relay = Relay(self._gpu)

    def start(self) -> None:
        """The counters always count."""

    def stop(self) -> None:
        """Nobody watches any more."""
        self.relay.silence()

    def begin(self) -> None:
        """A step begins; the last one is kept."""
        self._gpu.restart()

    def end(self) -> None:
        """The step has ended."""
        self._gpu.close()

    def found(self) -> dict[str, Any]:
        """Bytes by instant, the allocator's peak, its retries."""
        stats = self._counters.memory_stats()
        return {
            "instants": {one.name: one.bytes for one in instants_of(self._gpu.events, [])},
            "reserved_bytes": max(self._gpu.reserved.values(), default=None),
            "alloc_retries": stats.get("num_alloc_retries"),
        }


def memory_of(device: str) -> CpuMemory | GpuMemory:
    """What watches the memory of a device."""
    return GpuMemory() if device == "cuda" else CpuMemory()
