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
    tokens, itemsize = x.numel // inputs, x.itemsize
    dense = t.new(weight.numel, itemsize, "temporaries")
    out = t.compute(tokens * outputs, itemsize)
    del dense
    dropped = _dropped(t, x, pair.dropout)
    narrow = t.new(tokens * pair.down.shape[0], itemsize)
    del narrow
    kept = (x.storage, dropped.storage)
    x_numel, down, up = x.numel, pair.down, pair.up
    needs = x.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        made = [t.new(p.numel, p.itemsize, "gradients") for p in (down, up)]
        dense = t.new(weight.numel, itemsize, "temporaries")
        dx = t.new(x_numel, itemsize) if needs else None
        del dense
        return (dx, *made)

    return t.record(out, (x.node, down, up), backward, packs=True)


def _dropped(t: Tape, x: Tensor, probability: float) -> Tensor:
    if not probability:
        return x
    mask = t.new(x.numel, 1)
    out = t.new(x.numel, x.itemsize)
    del mask
    return out
