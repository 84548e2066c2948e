"""Weights of the chosen experts as DBRX and Phi-MoE compute them."""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import FP32_BYTES, concat
from vram_plan.estimator.ops.experts import INDEX_BYTES
from vram_plan.estimator.tape import Tape, Tensor


def divide_by_norm(t: Tape, x: Tensor, width: int, *, wide: bool) -> Tensor:
    """``x / x.norm(p=1, dim=-1, keepdim=True)``: the norm keeps x and itself, so does the division.

    ``linalg_vector_norm_backward`` for p = 1: ``x.sgn() * grad``; ``wide``: autocast has norms in
    fp32.
    """
    rows, numel, itemsize = x.numel // width, x.numel, x.itemsize
    norm = t.new(rows, FP32_BYTES if wide else itemsize)
    kept = x.storage, norm.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        sign = t.new(numel, itemsize)
        product = t.new(numel, max(grad.itemsize, itemsize))
        del sign
        return (product if product.itemsize == itemsize else t.new(numel, itemsize),)

    t.record(norm, (x.node,), backward)

    def divided(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel, grad.itemsize)
        quotient = t.new(numel, grad.itemsize)
        total = t.new(rows, norm_bytes)
        del quotient
        return dx if dx.itemsize == itemsize else t.new(numel, itemsize), total

    norm_bytes = norm.itemsize
    return t.record(t.new(numel, max(itemsize, norm_bytes)), (x.node, norm.node), divided)


def sparse_mixer(t: Tape, scores: Tensor, experts: int, itemsize: int) -> tuple[Tensor, Tensor]:
    """``sparsemixer``: two experts sampled one after the other, with a gradient of its own.

    transformers 5.23.0 ``models/phimoe/modeling_phimoe.py``; ``itemsize`` is that of the softmax.
    Left out: what is freed before the second sample, all of it the size of the scores.
    """
    first, first_index = _sampled(t, scores, experts, itemsize)
    second, second_index = _sampled(t, scores, experts, itemsize)
    weights = concat(t, (first, second))
    index = t.new(first_index.numel + second_index.numel, INDEX_BYTES)
    del first, second, first_index, second_index
    return weights, index


def _sampled(t: Tape, scores: Tensor, experts: int, itemsize: int) -> tuple[Tensor, Tensor]:
    """``PhimoeMultiplier``: keeps the softmax of the masked scores, the choice and its share.

    The operators in front of it keep their mask and index, although no gradient comes through.
    """
    numel, rows, before = scores.numel, scores.numel // experts, scores.itemsize
    mask, index = t.new(numel, 1), t.new(rows, INDEX_BYTES)
    gates, share = t.new(numel, itemsize), t.new(rows, itemsize)
    kept = mask.storage, index.storage, gates.storage, share.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        scaled, negated = t.new(rows, itemsize), t.new(rows, itemsize)
        result = t.new(numel, itemsize)
        del scaled, negated
        return (result if itemsize == before else t.new(numel, before),)

    return t.record(t.new(rows, itemsize), (scores.node,), backward), index
