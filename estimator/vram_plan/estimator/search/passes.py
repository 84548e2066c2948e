"""What a pass takes on any GPU: kernels added up once, priced with a few products for each GPU.

The same seconds as ``speed/phases.py`` (a test holds both to one another) without its parts: what
is no product of matrices is one sum of bytes, and products that reach the same share of the peak
share their rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vram_plan.estimator.speed.roofline import reached_flops
from vram_plan.estimator.speed.work import Kernel, Work
from vram_plan.profiles.efficiency import Curves, curves_of
from vram_plan.profiles.gpus import GpuSpec

_TILE = 32
_ENGINE = 0.5
"""Autograd's engine runs without Python (``phases``)."""
_DEQUANTIZATION, _ATTENTION = "dequantization", "attention"


class Like(NamedTuple):
    """Kernels that reach the same rate."""

    kind: str
    phase: str
    itemsize: int
    inner: int


@dataclass(frozen=True, slots=True)
class Added:
    """One direction of a pass.

    Attributes:
        products: rate, operations and bytes of each kernel that computes, all its runs together.
        moved: bytes of kernels that do not.
        unpacked: of them, those of dequantization.
        kernels: how many run.
        shaped: of them, products of matrices.
        launches: how many the host brings on their way, those of autograd's engine as halves.
    """

    products: tuple[tuple[Like, float, float], ...]
    moved: float
    unpacked: float
    kernels: float
    shaped: float
    launches: float


def added_up(work: Work, *, key_ranks: int, scale: float, backward: bool) -> Added:
    """Kernels of the forward pass, or of the backward pass with recomputation."""
    products: list[tuple[Like, float, float]] = []
    moved = {False: 0.0, True: 0.0}
    kernels = shaped = launches = 0.0
    for kernel, count in work:
        if (kernel.phase != "forward") != backward:
            continue
        attends = kernel.kind == _ATTENTION
        times = count * scale * (key_ranks if attends else 1)
        kernels += times
        launches += count * (_ENGINE if kernel.phase == "backward" else 1.0)
        if not kernel.flops:
            moved[kernel.kind == _DEQUANTIZATION] += kernel.bytes * times
            continue
        shaped += 0.0 if attends else times
        products.append((_like(kernel), kernel.flops * times, kernel.bytes * times))
    return Added(tuple(products), moved[False], moved[True], kernels, shaped, launches)


def _like(kernel: Kernel) -> Like:
    inner = 0 if kernel.kind == _ATTENTION else kernel.shape[2]
    return Like(kernel.kind, kernel.phase, kernel.itemsize, inner)


class Prices:
    """Seconds of passes on one kind of GPU."""

    def __init__(self, gpu: GpuSpec, curves: Curves | None = None) -> None:
        self.curves = curves or curves_of(gpu)
        self._gpu = gpu
        self._byte = 1 / (gpu.memory_bandwidth_bytes_per_s * self.curves.memory)
        self._unpacked = 1 / (gpu.memory_bandwidth_bytes_per_s * self.curves.dequantization)
        self._rates: dict[Like, tuple[float, float]] = {}

    def seconds(self, added: Added) -> float:
        """On the device, however slow the host is."""
        curves, rates = self.curves, self._rates
        total = added.moved * self._byte + added.unpacked * self._unpacked
        total += added.kernels * curves.kernel_seconds + added.shaped * curves.product_seconds
        for like, operations, nbytes in added.products:
            operation, byte = rates.get(like) or self._rate(like)
            total += max(operations * operation, nbytes * byte)
        return total

    def _rate(self, like: Like) -> tuple[float, float]:
        """Seconds of an operation and of a byte."""
        shape = (1, _TILE, like.inner, _TILE)
        kernel = Kernel(
            phase=like.phase, kind=like.kind, flops=1.0, itemsize=like.itemsize, shape=shape
        )
        byte = self._unpacked if like.kind == _DEQUANTIZATION else self._byte
        self._rates[like] = (1 / reached_flops(kernel, self._gpu, self.curves), byte)
        return self._rates[like]
