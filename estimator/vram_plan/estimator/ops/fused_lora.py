"""A frozen quantized weight and its low-rank pair as one autograd function."""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.tape import Param, Tape, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The low-rank pair beside a weight, and the dropout of its input."""

    down: Param
    up: Param
    dropout: float = 0.0


def fused_lora(t: Tape, x: Tensor, weight: Param, pair: Pair, outputs: int) -> Tensor:
    """``x @ W.T + (drop(x) @ A.T) @ B.T``: keeps x and the dropped copy, which has no mask.

    foundation-model-stack/fms-acceleration ``fms_acceleration_foak/fused_ops/unsloth_lora``
    ``LoRA_QKV``, ``LoRA_W`` and ``matmul_lora`` (after Unsloth's ``kernels/fast_lora.py``): the
    weight is written out for each product, the pair's product is added in place.
    """
    inputs = weight.numel // outputs
    tokens, itemsize, rank = x.numel // inputs, x.itemsize, pair.down.shape[0]
    dense = _written_out(t, weight.numel, itemsize)
    out = t.compute(tokens * outputs, itemsize)
    _products(t, itemsize, (tokens, inputs, outputs))
    del dense
    dropped = _dropped(t, x, pair.dropout)
    narrow = t.new(tokens * rank, itemsize)
    _products(t, itemsize, (tokens, inputs, rank), (tokens, rank, outputs))
    del narrow
    kept = (x.storage, dropped.storage)
    x_numel, down, up = x.numel, pair.down, pair.up
    needs = x.requires_grad
    # x·A and the gradient times B are made again, then both weights' gradients
    narrow_ones = 2 * ((tokens, inputs, rank), (tokens, outputs, rank))

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        made = [t.new(p.numel, p.itemsize, "gradients") for p in (down, up)]
        dense = _written_out(t, weight.numel, itemsize)
        dx = t.new(x_numel, itemsize) if needs else None
        if dx is not None:
            _products(t, itemsize, (tokens, outputs, inputs), (tokens, rank, inputs), *narrow_ones)
        del dense
        return (dx, *made)

    return t.record(out, (x.node, down, up), backward, packs=True)


def _written_out(t: Tape, numel: int, itemsize: int) -> Tensor:
    dense = t.new(numel, itemsize, "temporaries")
    if t.work is not None:
        t.work.label("dequantization")
    return dense


Shape = tuple[int, int, int]


def _products(t: Tape, itemsize: int, last: Shape, *others: Shape) -> None:
    """The ``last`` tensor made is a product; the outputs of ``others`` have no name."""
    if t.work is not None:
        t.work.product(last, itemsize)
        for shape in others:
            t.work.hidden_product(shape, itemsize)


def _dropped(t: Tape, x: Tensor, probability: float) -> Tensor:
    if not probability:
        return x
    mask = t.new(x.numel, 1)
    out = t.new(x.numel, x.itemsize)
    del mask
    return out
