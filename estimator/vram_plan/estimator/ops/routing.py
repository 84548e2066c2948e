"""Weights of the chosen experts as DBRX and Phi-MoE compute them."""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import FP32_BYTES
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
