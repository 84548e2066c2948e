"""Linear layers in 8 bits outside Megatron-LM: torchao's ``Float8Linear``, ``te.Linear``.

pytorch/ao @ 36027d82 ``torchao/float8/float8_linear.py``, ``float8_ops.py``, ``float8_utils.py``;
NVIDIA/TransformerEngine @ d0067d0d ``transformer_engine/pytorch/module/linear.py``.
"""

from __future__ import annotations

from vram_plan.estimator.fp8 import Eight
from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.linear import LOW_BYTES, edge_of
from vram_plan.estimator.ops.megatron_fp8 import quantized, weight_gradients
from vram_plan.estimator.tape import Param, Tape, Tensor

__all__ = ["engine_linear", "float8_linear"]


def float8_linear(
    t: Tape, x: Tensor, weight: Param, bias: Param | None, eight: Eight, *, compiled: bool
) -> Tensor:
    """The linear layer of torchao: keeps the 16-bit input, and casts anew going back.

    The input's gradient needs the weight by columns, the weight's both of its factors: each is
    copied once more in 8 bits (``preprocess_addmm``). Gradients of both are made, wanted or not;
    the bias is added outside. A weight that FSDP gathered in 8 bits is not cast.
    """
    outputs, inputs = weight.shape
    numel, itemsize = x.numel, LOW_BYTES
    tokens = numel // inputs
    cast_input = _cast(t, numel, compiled=compiled)
    cast_weight = None if eight.gathered else _cast(t, weight.numel, compiled=compiled)
    make = t.new if t.selected is not None and t.selected.skips_product() else t.compute
    out = make(tokens * outputs, itemsize)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), itemsize)
    del cast_input, cast_weight
    kept = x.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        cast = _cast(t, grad.numel, compiled=compiled)
        again = None if eight.gathered else _cast(t, weight.numel, compiled=compiled)
        turned = t.new(weight.numel, 1)
        dx = t.new(numel, itemsize).view()
        if t.work is not None:
            t.work.product((tokens, outputs, inputs), itemsize)
        del turned
        anew = None
        if eight.recipe == "ao-rowwise" or not compiled:
            # Scales of the other direction; written out, the same cast is made again.
            anew = _cast(t, grad.numel, compiled=compiled)
        factors = [_cast(t, numel, compiled=compiled), t.new(grad.numel, 1), t.new(numel, 1)]
        made = t.new(weight.numel, itemsize, "gradients").view() if weight.trainable else None
        if t.work is not None and weight.trainable:
            t.work.product((outputs, tokens, inputs), itemsize)
        del cast, again, anew, factors
        if made is not None and weight.itemsize > itemsize:
            made = t.new(weight.numel, weight.itemsize, "gradients")  # the engine casts it
        return dx, made

    edges = (x.node, edge_of(weight))
    out = t.record(out, edges, backward, packs=True, saves=(x, weight))
    return out if bias is None else _add_bias(t, out, bias)


def _cast(t: Tape, numel: int, *, compiled: bool) -> Tensor:
    """A tensor in 8 bits; without a compiler it is multiplied, then clamped, in fp32 first."""
    if compiled:
        return t.new(numel, 1)
    scaled, clamped = t.new(numel, FP32_BYTES), t.new(numel, FP32_BYTES)
    made = t.new(numel, 1)
    del scaled, clamped
    return made


def _add_bias(t: Tape, x: Tensor, bias: Param) -> Tensor:
    outputs, itemsize = bias.numel, bias.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, t.new(outputs, itemsize, "gradients") if bias.trainable else None

    return t.record(t.new(x.numel, x.itemsize), (x.node, edge_of(bias)), backward)


def engine_linear(t: Tape, x: Tensor, weight: Param, bias: Param | None, eight: Eight) -> Tensor:
    """``te.Linear``: keeps its input and its weight in 8 bits, as the gradients will read them.

    Nobody says which micro-batch is the first, so every forward pass casts the weight anew and
    keeps what it made until it went back.
    """
    outputs, inputs = weight.shape
    numel, itemsize = x.numel, LOW_BYTES
    tokens = numel // inputs
    rows, columns = quantized(t, eight, numel)
    own = t.new(eight.weight_bytes(weight.numel), 1)
    out = t.new(tokens * outputs, itemsize)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), itemsize)
    del rows
    kept = (columns.storage, own.storage)
    del columns, own

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        casts = quantized(t, eight, grad.numel)
        dx = t.new(numel, itemsize).view()
        if t.work is not None:
            t.work.product((tokens, outputs, inputs), itemsize)
        made = [None] if not weight.trainable else weight_gradients(t, (weight,), tokens, itemsize)
        del casts
        if made[0] is not None and weight.itemsize > itemsize:
            made = [t.new(weight.numel, weight.itemsize, "gradients")]
        offset = t.new(outputs, itemsize, "gradients") if bias and bias.trainable else None
        return dx, *made, offset

    edges = (x.node, edge_of(weight), edge_of(bias))
    return t.record(out, edges, backward, packs=True)
