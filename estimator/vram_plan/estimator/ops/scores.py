"""Attention written out in the dtype and order of each older model class.

``ops/attention.py`` has the form that newer classes share (an fp32 softmax after the mask). The
classes of GPT-2's time differ in where they upcast, scale, mask and copy, hence in what they keep.
Shapes are those of `Heads`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ops.attention import Heads, batched_product, softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, dropout, scale
from vram_plan.estimator.tape import Tape, Tensor

LOW_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How a class writes its attention.

    Attributes:
        wide_products: queries and keys are cast to fp32 before their product (GPT-J, GPT-Neo).
        wide_softmax: ``softmax(…, dtype=float32)``, then back to the values' dtype.
        scaling: where the scores are multiplied by a number: ``before`` or ``after`` the mask, or
            ``never``.
        chosen: ``torch.where`` with a boolean buffer masks the scores first (GPT-Neo).
        mask_bytes: bytes per element of the additive mask.
        autocast: matrix products run in 16 bits, softmax in fp32.
    """

    wide_products: bool = False
    wide_softmax: bool = False
    scaling: str = "before"
    chosen: bool = False
    mask_bytes: int = 2
    autocast: bool = False


def written(t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads, how: Written) -> Tensor:
    """Scores, mask, softmax, dropout, product with the values: [batch, heads, seq, value_dim]."""
    if how.wide_products:
        q, k = cast(t, q, FP32_BYTES), cast(t, k, FP32_BYTES)
    weights = product(t, flattened(t, low(t, q, how), s), flattened(t, low(t, k, how), s), s.scores)
    if how.scaling == "before":
        weights = scale(t, weights)
    if how.chosen:
        weights = scale(t, weights)  # ``where``: a new tensor, and one more for the gradient
    weights = add(t, weights, Tensor(0, how.mask_bytes, None))
    if how.scaling == "after":
        weights = scale(t, weights)
    width = FP32_BYTES if how.wide_softmax or how.autocast else weights.itemsize
    weights = softmax(t, weights, width, half_to_float=s.half)
    weights = cast(t, weights, v.itemsize)
    weights = dropout(t, weights, s.dropout)
    return product(
        t, low(t, weights, how), flattened(t, low(t, v, how), s), s.batch * s.heads * s.seq * s.value_dim
    )


product = batched_product


def low(t: Tape, x: Tensor, how: Written) -> Tensor:
    """What autocast hands to a matrix product."""
    return cast(t, x, LOW_BYTES) if how.autocast else x


def flattened(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """[batch, heads, seq, dim], transposed from [batch, seq, heads, dim], as one batch of products.

    ``matmul`` reshapes its factors to three dimensions (``aten/src/ATen/native/LinearAlgebra.cpp``,
    torch 2.13.0), which copies unless batch and heads can be one dimension.
    """
    return copy(t, x) if s.batch > 1 and s.heads > 1 else x


def merged(t: Tape, x: Tensor) -> Tensor:
    """``transpose(1, 2).contiguous()`` of the product: a copy."""
    return copy(t, x)
