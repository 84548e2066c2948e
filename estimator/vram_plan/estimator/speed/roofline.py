"""Seconds of a kernel: whichever takes longer, its operations or its bytes.

seconds = kernel_seconds + max(flops / (peak · share), bytes / (bandwidth · share)); the shares are
the curves of ``profiles/efficiency.py``. The roofline model: Williams, Waterman and Patterson,
Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

from vram_plan.estimator.speed.work import Kernel
from vram_plan.profiles.efficiency import Curves
from vram_plan.profiles.gpus import GpuSpec

__all__ = ["kernel_seconds", "peak_flops", "reached_flops"]

_BY_BYTES = {4: ("fp32",), 2: ("bf16", "fp16"), 1: ("int8", "fp8", "fp16")}
_WIDE, _HALF = 4, 2
_TILE = 32
"""Smallest edge of the output tiles of cuBLAS' kernels (NVIDIA's guide to matrix-multiplication
performance, docs.nvidia.com/deeplearning/performance, section on tile quantization)."""


def peak_flops(gpu: GpuSpec, itemsize: int, precision: str = "") -> float:
    """Dense operations per second for factors of so many bytes, or of a named dtype.

    A GPU without a rate for the dtype runs it at that of fp32, or at the slowest it has.
    """
    names = (precision, *_BY_BYTES.get(itemsize, ()), "fp32")
    slowest = min(gpu.peak_flops.values())
    return next((gpu.peak_flops[name] for name in names if name in gpu.peak_flops), slowest)


def kernel_seconds(kernel: Kernel, gpu: GpuSpec, curves: Curves) -> float:
    """Seconds of one kernel on the device."""
    reached = curves.dequantization if kernel.kind == "dequantization" else curves.memory
    moved = kernel.bytes / (gpu.memory_bandwidth_bytes_per_s * reached)
    if not kernel.flops:
        return curves.kernel_seconds + moved
    rate = reached_flops(kernel, gpu, curves)
    if kernel.kind == "attention":
        return curves.kernel_seconds + max(kernel.flops / rate, moved)
    fixed = curves.kernel_seconds + curves.product_seconds
    return fixed + max(_padded(kernel) / rate, moved)


def reached_flops(kernel: Kernel, gpu: GpuSpec, curves: Curves) -> float:
    """Operations per second of a kernel that computes."""
    return peak_flops(gpu, kernel.itemsize, kernel.dtype) * _share(kernel, curves)


def _share(kernel: Kernel, curves: Curves) -> float:
    if kernel.kind == "attention":
        going_back = kernel.phase == "backward"
        most = curves.attention_backward if going_back else curves.attention_forward
        if kernel.itemsize >= _WIDE:  # the kernels of 32 bits have no faster way than products
            return min(most, curves.matmul_wide)
        return most
    inner = kernel.shape[2]
    most = curves.matmul if kernel.itemsize == _HALF else curves.matmul_narrow
    if kernel.itemsize >= _WIDE:
        most = curves.matmul_wide
    return most * inner / (inner + curves.matmul_inner)


def _padded(kernel: Kernel) -> float:
    """Operations with rows and columns filled up to whole tiles."""
    batch, rows, inner, columns = kernel.shape
    return 2.0 * batch * _to_tile(rows) * inner * _to_tile(columns)


def _to_tile(length: int) -> int:
    return -(-length // _TILE) * _TILE
