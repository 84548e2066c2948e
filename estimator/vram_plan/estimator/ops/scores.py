"""Attention written out in the dtype and order of each older model class.

The classes of GPT-2's time differ in where they upcast, scale, mask and copy, hence in what they
keep. Shapes are those of `Heads`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ops.attention import Heads, batched_product, softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, dropout, scale
from vram_plan.estimator.ops.sdpa import repeat
from vram_plan.estimator.tape import Tape, Tensor

LOW_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How a class writes its attention.

    Attributes:
        wide_products: queries and keys are cast to fp32 before their product (GPT-J, GPT-Neo).
        wide_softmax: ``softmax(…, dtype=float32)``, then the queries' dtype, not the values'.
        scaling: where the scores are multiplied by a number: ``before`` or ``after`` the mask, or
            ``never``.
        chosen: ``torch.where`` with a boolean buffer masks the scores first (GPT-Neo).
        copied: which of ``q``, ``k`` and ``v`` are laid out by tokens, so that ``matmul`` copies
            them: those that come straight from a projection.
        mask_bytes: bytes per element of the additive mask.
        autocast: matrix products run in 16 bits, softmax in fp32.
    """

    wide_products: bool = False
    wide_softmax: bool = False
    scaling: str = "before"
    chosen: bool = False
    copied: str = "qkv"
    mask_bytes: int = 2
    autocast: bool = False


def written(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads, how: Written
) -> tuple[Tensor, Tensor]:
    """Scores, mask, softmax, dropout, product with the values, merged heads; the probabilities."""
    itemsize = (q if how.wide_softmax else v).itemsize
    k, v = repeated(t, k, s), repeated(t, v, s)
    if how.wide_products:
        q, k = cast(t, q, FP32_BYTES), cast(t, k, FP32_BYTES)
    factors = factor(t, q, s, how, "q"), factor(t, k, s, how, "k")
    product = batched_product(t, *factors, s.scores, s.head_dim)
    del factors
    weights = masked(t, product.moved(), how)
    width = width_of(weights, how)
    if how.wide_softmax:  # one expression: the scores are there until the cast is
        weights = cast(t, softmax(t, weights, width, half_to_float=s.half), itemsize)
    else:
        weights = softmax(t, weights, width, half_to_float=s.half)
        weights = cast(t, weights, itemsize)
    weights = dropout(t, weights, s.dropout)
    numel = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, low(t, weights, how), factor(t, v, s, how, "v"), numel, s.kv_seq)
    return copy(t, out), weights


def repeated(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """``repeat_kv``: a copy for every query head that shares a key, but a view of a single head.

    ``matmul`` copies that view, unless there is only one sequence.
    """
    if s.heads == s.kv_heads:
        return x
    if s.kv_heads > 1:
        return repeat(t, x, s.heads // s.kv_heads)
    numel, itemsize = x.numel, x.itemsize
    out = Tensor(s.heads * numel, itemsize, x.storage)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def masked(t: Tape, weights: Tensor, how: Written) -> Tensor:
    """The scores with scaling and mask."""
    if how.scaling == "before":
        weights = scale(t, weights)
    if how.chosen:
        weights = scale(t, weights)  # ``where``: a new tensor, and one more for the gradient
    weights = add(t, weights, Tensor(0, how.mask_bytes, None))
    return scale(t, weights) if how.scaling == "after" else weights


def width_of(weights: Tensor, how: Written) -> int:
    """Bytes per element in which the softmax runs."""
    return FP32_BYTES if how.wide_softmax or how.autocast else weights.itemsize


def low(t: Tape, x: Tensor, how: Written) -> Tensor:
    """What autocast hands to a matrix product."""
    return cast(t, x, LOW_BYTES) if how.autocast else x


def factor(t: Tape, x: Tensor, s: Heads, how: Written, name: str) -> Tensor:
    """A factor of ``matmul`` [batch, heads, …] as one batch of products.

    ``matmul`` reshapes its factors to three dimensions (``aten/src/ATen/native/LinearAlgebra.cpp``,
    torch 2.13.0), which copies unless batch and heads can be one dimension. Repeated heads are
    laid out by heads already, a single one's view is not.
    """
    x = low(t, x, how)
    single = name != "q" and s.kv_heads == 1 < s.heads
    mixed = single or (name in how.copied and (name == "q" or s.heads == s.kv_heads))
    return copy(t, x) if mixed and s.batch > 1 and s.heads > 1 else x
