"""CUDA's autocast lists on the CPU's autocast key.

The lists stand in torch/include/ATen/autocast_mode.h (AT_FORALL_FP32 and its neighbours), which
comes with every torch; a test compares. The list of operators run in the lower precision needs
nothing: it is the CPU's too, weight-cast cache included.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.library import fallthrough_kernel

__all__ = ["FALLTHROUGH", "FP32", "FP32_SET_OPT_DTYPE", "register"]

#: AT_FORALL_FP32, as far as language models meet it.
FP32 = (
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "rms_norm",
    "group_norm",
    "cosine_similarity",
    "nll_loss",
    "nll_loss2d",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "binary_cross_entropy_with_logits",
    "dist",
    "cdist",
    "renorm",
    "logsumexp",
)
#: AT_FORALL_FP32_SET_OPT_DTYPE: the result's type is fp32 unless the caller names one.
FP32_SET_OPT_DTYPE = (
    "prod",
    "prod.dim_int",
    "softmax.int",
    "log_softmax.int",
    "cumprod",
    "cumsum",
    "linalg_vector_norm",
    "linalg_matrix_norm",
    "linalg_matrix_norm.str_ord",
    "sum",
    "sum.dim_IntList",
)
#: On the CPU's lists but on none of CUDA's.
FALLTHROUGH = ("cross_entropy_loss", "cat", "stack")
_LOW = (torch.float16, torch.bfloat16)
_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def register(library: Any) -> None:
    """Put CUDA's rules on the CPU's autocast key."""
    for name in FP32:
        library.impl(name, _in_fp32(_operator(name)), "AutocastCPU", allow_override=True)
    for name in FP32_SET_OPT_DTYPE:
        library.impl(name, _to_fp32(_operator(name)), "AutocastCPU", allow_override=True)
    for name in FALLTHROUGH:
        library.impl(name, fallthrough_kernel, "AutocastCPU", allow_override=True)


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _in_fp32(op: Any) -> Callable[..., Any]:
    """autocast_mode.h ``CastPolicy::fp32``: every floating argument is cast."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            return op(*map(_cast, args), **{name: _cast(v) for name, v in kwargs.items()})

    return kernel


def _to_fp32(op: Any) -> Callable[..., Any]:
    """``CastPolicy::fp32_set_opt_dtype``: ask for an fp32 result, unless a type is given."""
    names = [argument.name for argument in op._schema.arguments]
    position = names.index("dtype")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else kwargs.get("dtype")
        eligible = isinstance(args[0], torch.Tensor) and args[0].dtype in _LOW
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            if not eligible or given is not None:
                return op(*args, **kwargs)
            kwargs = {**kwargs, "dtype": torch.float32}
            return op(*args[:position], **kwargs)

    return kernel


def _cast(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _LOW:
        return value.to(torch.float32)
    if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
        return [_cast(item) for item in value]
    return value
