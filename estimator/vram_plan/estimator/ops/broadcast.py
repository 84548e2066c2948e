"""Attention of many query heads with one key and value head that ``matmul`` broadcasts.

Nothing repeats the head beforehand (Falcon-7B); and the steps that work in place.
"""

from __future__ import annotations

from vram_plan.estimator.ops.attention import Heads, batched_product
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, dropout, scale
from vram_plan.estimator.ops.sdpa import safe_softmax
from vram_plan.estimator.tape import Tape, Tensor

LOW_BYTES = 2


def factor(t: Tape, x: Tensor, s: Heads, heads: int, *, autocast: bool) -> Tensor:
    """A factor of ``matmul`` laid out by tokens, with all heads.

    ``matmul`` expands and reshapes (``aten/src/ATen/native/LinearAlgebra.cpp``, torch 2.13.0):
    with one sequence that is a view, else a copy of every query head; its gradient is summed. What
    a prefix was put before is laid out by heads, and a view too.
    """
    x = cast(t, x, LOW_BYTES) if autocast else x
    times = s.heads // heads
    joined = x.numel == s.batch * heads * s.kv_seq * s.head_dim and s.kv_seq > s.seq
    if times == 1 and (s.batch == 1 or joined):
        return x
    out = t.new(x.numel * times, x.itemsize) if s.batch > 1 else expanded(x, times)
    numel, itemsize = x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad.view() if times == 1 else t.new(numel, itemsize),)

    return t.record(out, (x.node,), backward)


def expanded(x: Tensor, times: int) -> Tensor:
    """``expand``: more elements on the same memory."""
    return Tensor(x.numel * times, x.itemsize, x.storage)


def scale_in_place(t: Tape, x: Tensor) -> Tensor:
    """``x /= number``: no memory going forward, a new gradient going back."""
    out = Tensor(x.numel, x.itemsize, x.storage)
    return t.record(out, (x.node,), lambda grad: (t.new(grad.numel, grad.itemsize),), packs=True)


def add_in_place(t: Tape, x: Tensor, other: Tensor) -> Tensor:
    """``x += other`` of one shape and dtype."""
    out = Tensor(x.numel, x.itemsize, x.storage)
    return t.record(out, (x.node, other.node), lambda grad: (grad, grad))


def math(
    t: Tape, parts: tuple[Tensor, Tensor, Tensor], s: Heads, mask: Tensor, *, autocast: bool
) -> Tensor:
    """``_scaled_dot_product_attention_math`` (torch 2.13.0) in fp32 with a boolean mask.

    Its ``add_`` of the mask is in place. It returns the probabilities in the inputs' dtype too,
    which nobody keeps.
    """
    if autocast:
        parts = (cast(t, parts[0], 2), cast(t, parts[1], 2), cast(t, parts[2], 2))
    itemsize = parts[0].itemsize
    bias = t.new(mask.numel, itemsize)
    q, k, v = (cast(t, x, FP32_BYTES) for x in parts)
    scaled = scale(t, q)
    factors = (
        factor(t, scaled, s, s.heads, autocast=False),
        factor(t, scale(t, k), s, s.kv_heads, autocast=False),
    )
    weights = safe_softmax(t, batched_product(t, *factors, s.scores, s.head_dim).moved(), s)
    del factors
    weights = dropout(t, weights, s.dropout)
    second = weights if itemsize == FP32_BYTES else t.new(weights.numel, itemsize)
    values = factor(t, v, s, s.kv_heads, autocast=False)
    size = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, weights, values, size, s.kv_seq)
    out = cast(t, out, itemsize)
    del bias, q, scaled, second
    return copy(t, out)


def plain_scores(t: Tape, q: Tensor, k: Tensor, s: Heads, *, autocast: bool) -> Tensor:
    """``q @ k.transpose(-1, -2)``."""
    first = factor(t, q, s, s.heads, autocast=autocast)
    second = factor(t, k, s, s.kv_heads, autocast=autocast)
    return batched_product(t, first, second, s.scores, s.head_dim)


def plus_mask(t: Tape, weights: Tensor, itemsize: int) -> Tensor:
    """The scores plus a mask that the model holds."""
    return add(t, weights, Tensor(0, itemsize, None))
