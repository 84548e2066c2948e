"""Seconds of the passes of one micro-batch on one rank, by part and by phase.

The device works through its kernels in order while the host prepares the next ones: a phase takes
as long as the slower of the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.speed.roofline import kernel_seconds
from vram_plan.estimator.speed.work import Kernel, Work
from vram_plan.estimator.speed.worked import worked

if TYPE_CHECKING:
    from vram_plan.estimator.chain import Link
    from vram_plan.profiles.efficiency import Curves
    from vram_plan.profiles.gpus import GpuSpec

__all__ = ["LAUNCH", "PARTS", "RECOMPUTATION", "Passing", "chain_work", "passing"]

LAUNCH, RECOMPUTATION = "launch overhead", "recomputation"
PARTS = {
    "matmul": "matrix products",
    "scores": "attention",
    "attention": "attention",
    "memory": "memory-bound operations",
    "loss": "loss",
    "dequantization": "dequantization",
}
"""Kind of kernel → part of the step."""
_ENGINE = 0.5
"""Autograd's engine runs without Python."""
FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """What the passes of one micro-batch take on a rank.

    Attributes:
        parts: seconds by part.
        forward: seconds of the forward pass.
        backward: seconds of the backward pass, recomputation included.
        needed_flops: operations that the method needs.
        executed_flops: operations that are executed.
    """

    parts: dict[str, float]
    forward: float
    backward: float
    needed_flops: float
    executed_flops: float

    @property
    def seconds(self) -> float:
        """Forward and back."""
        return self.forward + self.backward


def chain_work(links: Iterable[Link]) -> Work:
    """The kernels of a chain of segments, equal ones together.

    Memory-bound ones of a kind are put together at their mean size: their time is affine in it.
    """
    counts: Counter[Kernel] = Counter()
    for link in links:
        if link.run is not None:
            for kernel, count in worked(link.run):
                counts[kernel] += count * link.count
    found = [(kernel, count) for kernel, count in counts.items() if kernel.flops]
    moved: Counter[tuple[str, str]] = Counter()
    times: Counter[tuple[str, str]] = Counter()
    for kernel, count in counts.items():
        if not kernel.flops:
            moved[kernel.phase, kernel.kind] += round(kernel.bytes * count)
            times[kernel.phase, kernel.kind] += count
    for (phase, kind), count in times.items():
        mean = moved[phase, kind] / count
        found.append((Kernel(phase=phase, kind=kind, bytes=mean), count))
    return tuple(found)


def passing(
    work: Work, gpu: GpuSpec, curves: Curves, *, key_ranks: int = 1, scale: float = 1.0
) -> Passing:
    """Add up kernels.

    Args:
        work: kernels with how often each runs.
        gpu: what they run on.
        curves: how much of its peaks it reaches.
        key_ranks: ranks that hold the keys of a sequence (context parallelism): each one's queries
            meet all of them.
        scale: nominal parameters of a size class over those of its representative shape.
    """
    parts = dict.fromkeys((*PARTS.values(), RECOMPUTATION, LAUNCH), 0.0)
    device = {FORWARD: 0.0, BACKWARD: 0.0}
    host = dict(device)
    needed = executed = 0.0
    for kernel, count in work:
        times = count * scale * (key_ranks if kernel.kind == "attention" else 1)
        seconds = kernel_seconds(kernel, gpu, curves) * times
        again = kernel.phase == "recompute"
        parts[RECOMPUTATION if again else PARTS[kernel.kind]] += seconds
        phase = FORWARD if kernel.phase == FORWARD else BACKWARD
        device[phase] += seconds
        from_python = kernel.phase != "backward"
        host[phase] += count * curves.launch_seconds * (1.0 if from_python else _ENGINE)
        needed += kernel.needed * times
        executed += kernel.flops * times
    waits = {phase: max(host[phase] - device[phase], 0.0) for phase in device}
    parts[LAUNCH] = sum(waits.values())
    return Passing(
        parts={name: seconds for name, seconds in parts.items() if seconds},
        forward=device[FORWARD] + waits[FORWARD],
        backward=device[BACKWARD] + waits[BACKWARD],
        needed_flops=needed,
        executed_flops=executed,
    )
