"""``scaled_dot_product_attention`` on CUDA: the kernel it picks and what that one keeps.

Sources (torch 2.13.0): ``aten/src/ATen/native/transformers/attention.cpp`` and
``cuda/{sdp_utils.cpp, attention.cu, attention_backward.cu}``. The order is that of compute
capability 8; later GPUs may prefer cuDNN, which keeps the same to a few bytes.
"""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.ops.attention import (
    LOW_BYTES,
    Heads,
    batched_product,
    flash,
    low,
    merged,
    repeat_heads,
    repeat_kv,
)
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, dropout, scale
from vram_plan.estimator.tape import Tape, Tensor

_SEEDS = 2
_MAX_FLASH_HEAD_DIM = 256
_LOG_SUM_EXP_ROWS = 32
_MASK_ALIGNMENT = 16


def kernel_for(itemsize: int, s: Heads, *, masked: bool) -> str:
    """``flash`` (16 bits, no mask, one width), ``efficient`` (equal heads, aligned) or ``math``."""
    same = s.head_dim == s.value_dim
    if itemsize == 2 and not masked and same and s.head_dim <= _MAX_FLASH_HEAD_DIM:
        return "flash"
    alignment = 8 if itemsize == 2 else 4
    aligned = s.head_dim % alignment == 0 and s.value_dim % alignment == 0
    return "efficient" if aligned and s.heads == s.kv_heads else "math"


def sdpa(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads, *, mask: Tensor | None = None
) -> Tensor:
    """Attention of q, k and v; ``mask`` is boolean (1 byte) or additive, without a gradient."""
    if s.autocast:
        # The last argument first: see `Forward.product`.
        v, k, q = (cast(t, x, LOW_BYTES) for x in (v, k, q))
    kernel = kernel_for(q.itemsize, s, masked=mask is not None)
    if kernel == "flash":
        return flash(t, q, k, v, s, seeds=_SEEDS)
    if kernel == "efficient":
        return efficient(t, (q, k, v), s, mask)
    return math(t, (q, k, v), s, mask)


def integrated(t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads) -> Tensor:
    """``sdpa_attention_forward`` of transformers 5.23.0 ``integrations/sdpa_attention.py``.

    A mask (a window shorter than the sequence) comes as booleans [batch, 1, seq, kv_seq]; keys and
    values are then repeated beforehand.
    """
    if not s.masked:
        return sdpa(t, q, k, v, s)
    k, v = repeat_kv(t, k, s), repeat_kv(t, v, s)
    mask = Tensor(s.batch * s.seq * s.kv_seq, 1, None)
    return sdpa(t, q, k, v, replace(s, kv_heads=s.heads), mask=mask)


def efficient(
    t: Tape, parts: tuple[Tensor, Tensor, Tensor], s: Heads, mask: Tensor | None
) -> Tensor:
    """The memory-efficient kernel: keeps q, k, v, out, log-sum-exp, the additive mask and seeds.

    A mask that learns (T5's position bias) gets a gradient for every sequence of the batch.
    """
    (q, k, v), masked = parts, mask is not None
    bias = _expanded(t, _aligned(t, additive(t, mask, q.itemsize), s), s)
    out = t.compute(s.batch * s.seq * s.heads * s.value_dim, q.itemsize)
    if t.work is not None:
        t.work.attention(s, q.itemsize, masked=masked)
    if not t.needs(q.node, k.node, v.node):
        return out
    rows = -(-s.seq // _LOG_SUM_EXP_ROWS) * _LOG_SUM_EXP_ROWS
    lse = t.compute(s.batch * s.heads * rows, FP32_BYTES)
    first, second = t.compute(1, 8), t.compute(1, 8)
    kept = (q.storage, k.storage, v.storage, out.storage, lse.storage)
    seeds = (first.storage, second.storage, bias.storage if bias else None)
    edges = (q.node, k.node, v.node, bias.node if bias else None)
    aligned = s.kv_seq + -s.kv_seq % _MASK_ALIGNMENT
    learned = (s.scores // s.kv_seq * aligned,) if edges[3] else ()
    sizes, itemsize = (q.numel, k.numel, v.numel, *learned), q.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept, seeds
        grads = tuple(t.new(size, itemsize) for size in sizes)
        if t.work is not None:
            t.work.attention(s, itemsize, outputs=len(grads), masked=masked)
        for made in grads[:3]:
            made.by_token = True
        delta = t.new(s.batch * s.heads * s.seq, FP32_BYTES)
        t.new(_workspace(s, itemsize), 1)
        del delta
        return grads if learned else (*grads, None)

    full = Tensor(s.scores, bias.itemsize, bias.storage) if bias else None
    saves = (q, k, v, out, lse, first, second, full)
    return t.record(out, edges, backward, saves=saves)


def _workspace(s: Heads, itemsize: int) -> int:
    """Bytes that the kernel's backward takes for itself.

    dq is summed in fp32 tiles with 16 bytes of bookkeeping each (``mem_eff_attention/
    kernel_backward.h``: ``kEnableSplitKeys`` from sm70 on); the fp32 kernels have
    out · dout summed over the head dimension outside, which makes a product of out's size.
    """
    tile = 64 if s.head_dim <= 64 else 128
    tiles = -(-s.seq // tile) * -(-s.head_dim // tile)
    sums = s.batch * s.heads * tiles * (4 * tile * tile + 16)
    rows = s.batch * s.heads * s.seq
    product = FP32_BYTES * rows * (s.value_dim + 1) if itemsize == FP32_BYTES else 0
    return max(sums, product)


def _expanded(t: Tape, mask: Tensor | None, s: Heads) -> Tensor | None:
    """The mask for every sequence, a view; a gradient of it is summed over the batch."""
    if mask is None or mask.node is None:
        return mask
    numel, itemsize = mask.numel, mask.itemsize
    out = Tensor(s.scores, itemsize, mask.storage)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad.view() if s.batch == 1 else t.new(numel, itemsize),)

    return t.record(out, (mask.node,), backward)


def additive(t: Tape, mask: Tensor | None, itemsize: int) -> Tensor | None:
    """A boolean mask becomes zeros and minus infinities in the queries' dtype."""
    return t.new(mask.numel, itemsize) if mask is not None and mask.itemsize == 1 else mask


def _aligned(t: Tape, mask: Tensor | None, s: Heads) -> Tensor | None:
    """``preprocess_mask``: rows are padded to 16 elements where they are not a multiple."""
    missing = -s.kv_seq % _MASK_ALIGNMENT
    if mask is None or not missing:
        return mask
    numel, itemsize = mask.numel, mask.itemsize
    out = t.new(numel // s.kv_seq * (s.kv_seq + missing), itemsize)
    return t.record(out, (mask.node,), lambda grad: (t.new(numel, itemsize),))


def math(t: Tape, parts: tuple[Tensor, Tensor, Tensor], s: Heads, mask: Tensor | None) -> Tensor:
    """The composed fallback, in fp32 for 16-bit inputs; keys and values may have fewer heads."""
    origin = parts[0].itemsize
    q, k, v = (cast(t, x, FP32_BYTES) for x in parts)
    q = _scaled(t, q)
    mask = additive(t, mask, FP32_BYTES)
    if mask is None:
        mask = t.new(s.seq * s.kv_seq, FP32_BYTES)
    keys, values = repeat_heads(t, k, s), repeat_heads(t, v, s)
    weights = batched_product(t, low(t, q, s), low(t, _scaled(t, keys), s), s.scores, s.head_dim)
    weights = add(t, weights, Tensor(0, weights.itemsize, mask.storage))
    weights = safe_softmax(t, weights, s)
    weights = dropout(t, weights, s.dropout)
    numel = s.batch * s.heads * s.seq * s.value_dim
    out = cast(t, batched_product(t, weights, low(t, values, s), numel, s.kv_seq), origin)
    return merged(t, out, s)


def _scaled(t: Tape, x: Tensor) -> Tensor:
    """``x * sqrt(scale)``, laid out as x."""
    out = scale(t, x)
    out.by_token = x.by_token
    return out


def safe_softmax(t: Tape, weights: Tensor, s: Heads) -> Tensor:
    """Softmax that gives zeros for rows which are masked whole; keeps its output."""
    plain = t.new(weights.numel, weights.itemsize)
    masked, rows = t.new(weights.numel, 1), t.new(weights.numel // s.kv_seq, 1)
    out = t.new(weights.numel, weights.itemsize)
    del plain, masked, rows
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(out, (weights.node,), backward)


def per_head(t: Tape, x: Tensor, s: Heads, heads: int) -> Tensor:
    """A factor of ``matmul`` as one batch of products over all query heads.

    Copied unless batch and heads can be one dimension; a copy that repeats heads is summed going
    back.
    """
    if s.batch == 1:
        return x
    if heads == s.heads:
        return copy(t, x)
    return repeat(t, x, s.heads // heads)


def repeat(t: Tape, x: Tensor, times: int) -> Tensor:
    """``expand`` and ``reshape``: every head copied ``times`` times; gradients are summed."""
    numel, itemsize = x.numel, x.itemsize
    out = t.new(numel * times, itemsize)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))
