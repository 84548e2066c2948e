"""Attention as the encoders of BERT's and BART's time write it out: softmax in the scores' dtype.

``eager_attention_forward`` of transformers 5.23.0 ``models/bert/modeling_bert.py`` (BART and T5
have the same; T5 adds a position bias). Shapes are those of `Heads`.
"""

from __future__ import annotations

from vram_plan.estimator.ops.attention import Heads, batched_product, softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, dropout, relayout, scale
from vram_plan.estimator.tape import Tape, Tensor

LOW_BYTES = 2


def plain(
    t: Tape,
    parts: tuple[Tensor, Tensor, Tensor],
    s: Heads,
    *,
    bias: Tensor | None = None,
    autocast: bool = False,
) -> Tensor:
    """Scores of q and k, scaled, biased and masked; softmax; dropout; product with v.

    Under autocast the softmax and what follows it are fp32 until the next matrix product.
    """
    q, k, v = parts
    weights = scale(t, batched_product(t, factor(t, q, s), factor(t, k, s), s.scores))
    if bias is not None:
        weights = add(t, weights, bias)
    if s.masked:
        weights = add(t, weights, Tensor(0, q.itemsize, None))
    width = FP32_BYTES if autocast else weights.itemsize
    weights = softmax(t, weights, width, half_to_float=s.half)
    weights = dropout(t, weights, s.dropout)
    low = cast(t, weights, LOW_BYTES) if autocast else weights
    return merged(t, batched_product(t, low, factor(t, v, s), s.batch * s.heads * s.seq * s.value_dim), s)


def factor(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """[batch, heads, length, dim], a transposed view, as one batch of matrices.

    ``matmul`` reshapes to three dimensions (``aten/src/ATen/native/LinearAlgebra.cpp``, torch
    2.13.0), which copies unless batch and heads can be one dimension; the gradient is copied back
    into the order of the projection.
    """
    if s.heads == 1:
        return x
    x = relayout(t, x)
    return copy(t, x) if s.batch > 1 else x


def merged(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """``transpose(1, 2).contiguous()``: a copy; undoing ``matmul``'s reshape copies its gradient."""
    if s.heads == 1:
        return x
    return copy(t, relayout(t, x) if s.batch > 1 else x)
