"""Attention as CUDA runs it: which kernel, what it saves, what scratch memory it takes.

Sources: pytorch aten/src/ATen/native/transformers/{attention.cpp, cuda/sdp_utils.cpp,
cuda/attention.cu, cuda/attention_backward.cu, cuda/flash_attn/flash_api.cpp};
Dao-AILab/flash-attention csrc/flash_attn/flash_api.cpp and flash_attn/flash_attn_interface.py.
"""

import math
from typing import Any

import torch
from torch.library import Library
from torch.nn import functional

__all__ = [
    "FLASH_FORWARD",
    "backward_scratch",
    "flash_attn_func",
    "kernel_for",
    "safe_softmax",
    "scaled_dot_product_attention",
]

_HALF = (torch.float16, torch.bfloat16)
_MAX_FLASH_HEAD_DIM = 256


def round_multiple(value: int, multiple: int) -> int:
    """The next multiple."""
    return (value + multiple - 1) // multiple * multiple


def kernel_for(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> str:
    """The backend of PyTorch's own order on compute capability 8: flash, efficient, math.

    sdp_utils.cpp: flash wants a 16-bit type, no mask, one head dimension up to 256 and, if
    causal, equal lengths; the memory-efficient kernel wants equal numbers of heads and head
    dimensions aligned to 16 bytes. Compute capabilities 9 and 10 prefer cuDNN where it is newer
    than 9.15.0; what it saves is the same to a few bytes.
    """
    dims = {query.shape[-1], key.shape[-1], value.shape[-1]}
    lengths_fit = not is_causal or query.shape[-2] == key.shape[-2]
    if (
        query.dtype in _HALF
        and mask is None
        and len(dims) == 1
        and query.shape[-1] <= _MAX_FLASH_HEAD_DIM
        and lengths_fit
    ):
        return "flash"
    alignment = 8 if query.dtype in _HALF else 4
    aligned = all(dim % alignment == 0 for dim in dims)
    if aligned and query.shape[1] == key.shape[1] and query.shape[-1] == key.shape[-1]:
        return "efficient"
    return "math"


def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **named: Any
) -> torch.Tensor:
    """attention.cpp's function of this name with CUDA's branches.

    Args:
        query: batch, heads, length, head dimension.
        key: likewise, perhaps with fewer heads.
        value: likewise.
        rest: the mask, the dropout probability, whether it is causal.
        named: the same by name; ``scale`` and ``enable_gqa``.
    """
    given = {**dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)), **named}
    mask = given.get("attn_mask")
    options: dict[str, Any] = {
        name: given[name] for name in ("dropout_p", "is_causal") if name in given
    }
    kernel = kernel_for(query, key, value, mask, options.get("is_causal", False))
    if kernel == "flash":
        return _flash(query, key, value, scale=given.get("scale"), **options)
    options["scale"] = given.get("scale")
    if kernel == "efficient":
        additive = _efficient_mask(mask, query, key)
        kept = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        out: torch.Tensor = efficient(query, key, value, additive, kept, **options)[0]
        return out
    options["enable_gqa"] = given.get("enable_gqa", False)
    plain = torch.ops.aten._scaled_dot_product_attention_math
    result: torch.Tensor = plain(query, key, value, _additive(mask, query.dtype), **options)[0]
    return result


def _flash(*tensors: torch.Tensor, scale: float | None, **options: Any) -> torch.Tensor:
    head_dim = tensors[0].shape[-1]
    padded = [pad_last_dim(tensor, 8) for tensor in tensors]
    scale = scale if scale is not None else 1 / math.sqrt(head_dim)
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    out: torch.Tensor = flash(*padded, **options, scale=scale)[0]
    return out if out.shape[-1] == head_dim else out[..., :head_dim]


def pad_last_dim(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad the head dimension, which copies the tensor, unless it is a multiple already."""
    missing = -tensor.shape[-1] % multiple
    return functional.pad(tensor, [0, missing]) if missing else tensor


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None or mask.dtype is not torch.bool:
        return mask
    lowest = torch.full((), -math.inf, dtype=dtype, device=mask.device)
    return torch.where(mask.logical_not(), lowest, torch.zeros((), dtype=dtype))


def _efficient_mask(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor | None:
    """attention.cpp ``preprocess_mask``: expand, and pad rows to 16 elements where needed."""
    mask = _additive(mask, query.dtype)
    if mask is None:
        return None
    batch, heads, rows, columns = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
    missing = -mask.shape[-1] % 16
    if missing:
        mask = functional.pad(mask, [0, missing])[..., :columns]
    return mask.expand(batch, heads, rows, columns)


def flash_backward_scratch(query: tuple[int, ...], key_heads: int, key_len: int) -> list[int]:
    """``mha_bwd``'s softmax_d, dq_accum and, with grouped heads, dk and dv per query head.

    Args:
        query: batch, length, heads, head dimension (a multiple of 8).
        key_heads: heads of keys and values.
        key_len: their length.
    """
    batch, length, heads, dim = query
    rows = round_multiple(length, 128)
    width = round_multiple(dim, 32 if dim <= 128 else 64)
    sizes = [4 * batch * heads * rows, 4 * batch * rows * heads * width]
    if key_heads != heads:
        sizes += [2 * batch * key_len * heads * dim] * 2
    return sizes


def efficient_backward_scratch(grad: torch.Tensor, query: torch.Tensor) -> list[int]:
    """``_efficient_attention_backward``: a contiguous gradient, delta, dq's partial sums.

    Delta is out · dout summed over the head dimension; the fp32 kernels have it computed outside,
    with a product of out's size. dq is summed in tiles of fp32 with 16 bytes of bookkeeping each,
    whatever the type (mem_eff_attention/kernel_backward.h: kEnableSplitKeys from sm70 on).

    Args:
        grad: of the output: batch, heads, length, head dimension.
        query: likewise.
    """
    batch, heads, length, dim = query.shape
    copied = 0 if grad.transpose(1, 2).is_contiguous() else grad.nbytes
    delta = 4 * batch * heads * length
    tile = 64 if dim <= 64 else 128
    tiles = -(-length // tile) * -(-dim // tile)
    sums = batch * heads * tiles * (4 * tile * tile + 16)
    product = grad.nbytes + delta if query.dtype is torch.float32 else 0
    return [copied, delta, max(sums, product)]


def backward_scratch(func: Any, args: Any) -> list[int]:
    """Scratch memory of the fused kernels' backward."""
    if func is torch.ops.aten._scaled_dot_product_flash_attention_backward.default:
        query, key = args[1], args[2]
        batch, heads, length, dim = query.shape
        return flash_backward_scratch((batch, length, heads, dim), key.shape[1], key.shape[2])
    if func is torch.ops.aten._scaled_dot_product_efficient_attention_backward.default:
        return efficient_backward_scratch(args[0], args[1])
    return []


def safe_softmax(scores: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """``_safe_softmax`` of the math kernel: rows that are all −∞ become zero (SoftMax.cpp)."""
    out = torch.ops.aten._softmax(scores if dtype is None else scores.to(dtype), dim, False)
    masked = scores == -math.inf
    rows = masked.all(dim, keepdim=True)
    result: torch.Tensor = torch.where(rows, torch.zeros((), dtype=out.dtype), out)
    return result


def _flash_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """flash_attn's ``_flash_attn_forward``: the output, log-sum-exp and the generator's state."""
    batch, length, heads, _ = query.shape
    log_sum_exp = query.new_empty((batch, heads, length), dtype=torch.float32)
    return torch.empty_like(query), log_sum_exp, query.new_empty((2,), dtype=torch.int64)


#: An operator of its own as in flash_attn, so that selective checkpointing can name it.
_KIND: Any = Library
_LIBRARY = _KIND("vram_plan", "DEF")
_LIBRARY.define("flash_attention(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)")
_LIBRARY.impl("flash_attention", _flash_forward, "CompositeExplicitAutograd")
FLASH_FORWARD: Any = torch.ops.vram_plan.flash_attention.default


class _FlashAttention(torch.autograd.Function):
    """flash_attn's FlashAttnFunc: the same tensors made, saved and returned."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        head_dim = query.shape[-1]
        query, key, value = (pad_last_dim(tensor, 8) for tensor in (query, key, value))
        out, log_sum_exp, rng_state = FLASH_FORWARD(query, key, value)
        ctx.save_for_backward(query, key, value, out, log_sum_exp, rng_state)
        result: torch.Tensor = out[..., :head_dim]
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        head_dim = grad.shape[-1]
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        padded = pad_last_dim(grad, 8)
        sizes = flash_backward_scratch(tuple(query.shape), key.shape[2], key.shape[1])
        scratch = [torch.empty((size,), dtype=torch.uint8) for size in sizes]
        del padded, scratch
        return tuple(tensor[..., :head_dim] for tensor in gradients)


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    **options: Any,
) -> torch.Tensor:
    """The flash_attn package's function as far as memory goes."""
    if q.dtype not in _HALF:
        raise ValueError(
            f"flash attention wants fp16 or bf16, not {q.dtype}: choose attention sdpa or eager"
        )
    if k.dtype is not q.dtype or v.dtype is not q.dtype:
        raise ValueError(
            f"flash attention wants queries, keys and values of one dtype (flash_api.cpp), not "
            f"{q.dtype}, {k.dtype} and {v.dtype}: choose attention sdpa or eager"
        )
    apply: Any = _FlashAttention.apply
    out: torch.Tensor = apply(q, k, v)
    return out
