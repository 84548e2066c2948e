# ruff: noqa: TID253 -- loaded only once a trace has been asked for
"""Make a fake ``cpu`` tensor behave as a CUDA tensor would.

Each rule replaces the kernel that PyTorch registers for the CPU by what its CUDA build does.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from vram_plan.bench.trace import attention, autocast
from vram_plan.bench.trace.rules import DeviceRules

__all__ = ["CudaRules"]

_AUTOGRAD = torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradCPU)
_LAYER_NORMS = (torch.ops.aten.native_layer_norm.default,)


def _dropout(tensor: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """aten/src/ATen/native/Dropout.cpp: CUDA uses the fused kernel, whose mask is bool."""
    if train and 0 < p < 1 and tensor.numel() > 0:
        return torch.ops.aten.native_dropout(tensor, p, True)[0]
    with torch._C._ExcludeDispatchKeyGuard(_AUTOGRAD):
        return torch.ops.aten.dropout(tensor, p, train)


def _softmax(
    tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None, *, op: Any
) -> torch.Tensor:
    """SoftMax.cpp: on CUDA fp16 → fp32 happens inside the kernel, without a copy."""
    if tensor.dtype is torch.float16 and dtype is torch.float32:
        return op(tensor, dim, True)
    converted = tensor if dtype is None else tensor.to(dtype)
    return op(converted, dim, False)


def _softmax_int(tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return _softmax(tensor, dim, dtype, op=torch.ops.aten._softmax)


def _log_softmax_int(
    tensor: torch.Tensor, dim: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    return _softmax(tensor, dim, dtype, op=torch.ops.aten._log_softmax)


_KERNELS = {
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
        library = torch.library.Library("aten", "IMPL")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Warning only once", UserWarning)
                for name, kernel in _KERNELS.items():
                    library.impl(name, kernel, "AutogradCPU", allow_override=True)
                autocast.register(library)
            with _foreach_is_default(), _flash_attn_package(), _not_traced():
                yield
        finally:
            library._destroy()

    def scratch(self, func: Any, args: Any, kwargs: Any, result: Any) -> list[int]:
        """Bytes of the blocks a kernel takes and gives back within one call."""
        return attention.backward_scratch(func, args)

    def size_bytes(self, func: Any, tensor: torch.Tensor) -> int | None:
        """layer_norm keeps mean and 1/σ in fp32 (layer_norm_kernel.cu); the fake kernel on the
        CPU has them in the input's type.
        """
        if func in _LAYER_NORMS and tensor.dim() and tensor.shape[-1] == 1:
            return 4 * tensor.numel()
        return None


@contextmanager
def _foreach_is_default() -> Iterator[None]:
    """torch/utils/_foreach_utils.py: foreach is the default on cuda, never on cpu.

    The lists are functions there; they name the device types.
    """
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    name = "_get_foreach_kernels_supported_devices"
    types = _foreach_utils._foreach_supported_types
    types.append(FakeTensor)
    try:
        with (
            mock.patch.object(_foreach_utils, name, lambda: ["cpu"]),
            mock.patch.object(optimizer, name, lambda: ["cpu"]),
        ):
            yield
    finally:
        types.remove(FakeTensor)


@contextmanager
def _flash_attn_package() -> Iterator[None]:
    """transformers finds a flash_attn package whose functions are ours."""
    from transformers import PreTrainedModel, modeling_flash_attention_utils

    def functions(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return attention.flash_attn_func, _varlen, None, None, None

    with (
        mock.patch.object(modeling_flash_attention_utils, "_lazy_imports", functions),
        mock.patch.object(modeling_flash_attention_utils, "_loaded_implementation", None),
        mock.patch.object(
            modeling_flash_attention_utils, "_is_packed_sequence", lambda *args: False
        ),
        mock.patch.object(PreTrainedModel, "_flash_attn_can_dispatch", lambda *a, **k: True),
    ):
        yield


@contextmanager
def _not_traced() -> Iterator[None]:
    """transformers builds masks for a fake tensor that it leaves out for a real one."""
    from transformers.utils import import_utils

    with mock.patch.object(import_utils, "is_fake_tensor", lambda tensor: False):
        yield


def _varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: Any = None,
    max_seqlen_k: Any = None,
    dropout_p: float = 0.0,
    softmax_scale: Any = None,
    causal: bool = False,
    window_size: Any = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Only its signature is used: transformers looks up what flash_attn can do."""
    raise ValueError("the traced step has no padding, so no variable lengths")
