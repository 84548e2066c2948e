"""Make a fake ``cpu`` tensor behave as a CUDA tensor would.

Each rule replaces the kernel that PyTorch registers for the CPU by what its CUDA build does.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.library import Library

from vram_plan.bench.trace import attention, autocast, quantized
from vram_plan.bench.trace.cudnn_rnn import cudnn_lstm
from vram_plan.bench.trace.flash_package import flash_attn_package
from vram_plan.bench.trace.rules import DeviceRules
from vram_plan.bench.trace.scratch import cuda_scratch, grouped_mm

__all__ = ["CudaRules"]

_LAYER_NORMS = (torch.ops.aten.native_layer_norm.default,)


def _dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """aten/src/ATen/native/Dropout.cpp: CUDA uses the fused kernel, whose mask is bool."""
    if p == 0 or not train or tensor.numel() == 0:
        return tensor
    if p == 1:
        return tensor.mul(torch.zeros((), dtype=tensor.dtype, device=tensor.device))
    dropped: torch.Tensor = torch.ops.aten.native_dropout(tensor, p, True)[0]
    return dropped


def _softmax(
    tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None, *, op: Any
) -> torch.Tensor:
    """SoftMax.cpp: on CUDA fp16 → fp32 happens inside the kernel, without a copy."""
    fused = tensor.dtype is torch.float16 and dtype is torch.float32
    converted = tensor if fused or dtype is None else tensor.to(dtype)
    out: torch.Tensor = op(converted, dim, fused)
    return out


def _softmax_int(tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _softmax(tensor, dim, dtype, op=torch.ops.aten._softmax)


def _log_softmax_int(
    tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    return _softmax(tensor, dim, dtype, op=torch.ops.aten._log_softmax)


def _rms_norm(
    tensor: torch.Tensor,
    shape: list[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    """layer_norm.cpp ``rms_norm_symint``: the fused kernel, which keeps 1/RMS in fp32."""
    out: torch.Tensor = torch.ops.aten._fused_rms_norm(tensor, shape, weight, eps)[0]
    return out


_KERNELS = {
    "rms_norm": _rms_norm,
    "dropout": _dropout,
    "softmax.int": _softmax_int,
    "log_softmax.int": _log_softmax_int,
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
}


class CudaRules(DeviceRules):
    """One NVIDIA GPU of compute capability 8 or newer."""

    has_host = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Register the kernels; all of it is undone at the end."""
        kind: Any = Library
        library = kind("aten", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once", UserWarning)
                for name, kernel in _KERNELS.items():
                    library.impl(name, kernel, "AutogradCPU", allow_override=True)
                autocast.register(library)
            with (
                _foreach_is_default(),
                _autocast_is_asked_of_cpu(),
                flash_attn_package(),
                cudnn_lstm(),
                quantized.cuda_layers(),
            ):
                yield
        finally:
            library._destroy()

    def composites(self) -> dict[Any, Callable[..., Any]]:
        """Bitsandbytes' operators, opened up, and what fake kernels refuse."""
        return {
            **super().composites(),
            torch.ops.aten._grouped_mm.default: grouped_mm,
            **quantized.composites(),
        }

    def scratch(self, func: Any, args: Any, kwargs: Any, result: Any) -> list[int]:
        """Bytes of the blocks a kernel takes and gives back within one call."""
        return cuda_scratch(func, args)

    def size_bytes(self, func: Any, tensor: torch.Tensor) -> int | None:
        """layer_norm's mean and 1/σ are fp32 on CUDA, in the input's type on the CPU.

        Source: aten/src/ATen/native/cuda/layer_norm_kernel.cu.
        """
        if func in _LAYER_NORMS and tensor.dim() and tensor.shape[-1] == 1:
            return 4 * tensor.numel()
        return None


@contextmanager
def _autocast_is_asked_of_cpu() -> Iterator[None]:
    """Asked without a device, torch tells of CUDA's autocast (PEFT's k-bit layers ask so).

    Recomputation asks too: checkpoints turn autocast on again while backward runs.
    """
    enabled = torch.is_autocast_enabled

    def is_enabled(*device: str) -> bool:
        return enabled(*(device or ("cpu",)))

    with mock.patch.object(torch, "is_autocast_enabled", is_enabled):
        yield


@contextmanager
def _foreach_is_default() -> Iterator[None]:
    """torch/utils/_foreach_utils.py: foreach is the default on cuda, never on cpu.

    The lists are functions there; they name the device types.
    """
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    name = "_get_foreach_kernels_supported_devices"
    with (
        mock.patch.object(_foreach_utils, name, _cpu_list),
        mock.patch.object(optimizer, name, _cpu_list),
    ):
        yield


def _cpu_list() -> list[str]:
    return ["cpu"]
