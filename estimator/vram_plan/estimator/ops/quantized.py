"""Matrix products with a frozen quantized weight."""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.four_bit_kernel import is_fused
from vram_plan.estimator.quantization import BNB_BLOCK
from vram_plan.estimator.tape import Param, Tape, Tensor

LOW_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBit:
    """What happens besides, by version and dtypes.

    Attributes:
        keeps_input: the input hangs on the node's context (bitsandbytes until 0.43.1).
        origin_bytes: bytes per element of the dtype that the weights were quantized from, where
            the product's is another: they are written out in it and cast (``dequantize_4bit(…)
            .to(A.dtype)``, bitsandbytes 0.50.2 ``autograd/_functions.py``); else 0.
        fuses: going forward few rows take a fused kernel, and more write the weight out in the
            product's own dtype (bitsandbytes 0.50).
    """

    keeps_input: bool = False
    origin_bytes: int = 0
    fuses: bool = True


def dequantized_linear(
    t: Tape, x: Tensor, weight: Param, outputs: int, *, nested: bool, old: FourBit = FourBit()
) -> Tensor:
    """``MatMul4Bit``: the weight is written out in 16 bits going forward and going back.

    bitsandbytes 0.50.2 ``autograd/_functions.py``. Going forward a fused kernel spares that for
    few rows (`is_fused`); else nested scales are there twice, without and with their offset, while
    the product is made (``_dequant_linear_fallback``, ``backends/cuda/ops.py``). Nothing but the
    weight is kept.
    """
    inputs = weight.numel // outputs
    tokens = x.numel // inputs
    x_numel, itemsize = x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dense = _dequantized(t, weight.numel, itemsize, nested, old)
        dx = t.new(x_numel, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, inputs), itemsize)
        del dense
        return (dx,)

    if old.keeps_input and t.needs(x.node):
        t.attach(x.storage)
    if not old.fuses:
        dense = _dequantized(t, weight.numel, itemsize, nested, old)
    elif is_fused(tokens, outputs, inputs, itemsize):
        dense = None
    else:
        dense = _written_out(t, weight.numel, itemsize, nested)
    out = t.compute(tokens * outputs, itemsize)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), itemsize)
    del dense
    return t.record(out, (x.node,), backward)


Dense = tuple[Tensor, ...]


def _dequantized(t: Tape, numel: int, itemsize: int, nested: bool, old: FourBit) -> Dense:
    """``dequantize_4bit(…).to(…)``; the scales are gone when it returns."""
    scales = t.new(-(-numel // BNB_BLOCK), FP32_BYTES, "temporaries") if nested else None
    dense = t.new(numel, old.origin_bytes or itemsize, "temporaries")
    del scales
    if old.origin_bytes:
        dense = t.new(numel, itemsize, "temporaries")
    if t.work is not None:
        t.work.label("dequantization")
    return (dense,)


def _written_out(t: Tape, numel: int, itemsize: int, nested: bool) -> Dense:
    """``_dequant_linear_fallback``: the scales, again with their offset, and the weight."""
    blocks = -(-numel // BNB_BLOCK)
    scales = tuple(t.inside(blocks, FP32_BYTES) for _ in range(2 * nested))
    dense = t.inside(numel, itemsize)
    if t.work is not None:
        t.work.label("dequantization")
    return (*scales, dense)


def int8_linear(t: Tape, x: Tensor, weight: Param, outputs: int, *, half: bool) -> Tensor:
    """``MatMul8bitLt`` with an outlier threshold: attaches its input, multiplies in int8.

    bitsandbytes 0.50.2 ``autograd/_functions.py``: the input is cast to fp16 (a copy for bf16),
    its outliers are found (``A.abs()`` and a mask), it is quantized row by row, the product is
    int32, then fp16, then the input's dtype, the first held to the end (``int8_scaled_mm`` of
    ``backends/default/ops.py``). Going back the int8 weight is written out in the
    input's dtype. Left out: the columns with outliers, which are few.
    """
    inputs = weight.numel // outputs
    tokens = x.numel // inputs
    x_numel, itemsize = x.numel, x.itemsize
    if t.needs(x.node):
        t.attach(x.storage)  # ctx.tensors, not save_for_backward

    codes = _quantize_rows(t, x, half=half)
    product = t.new(tokens * outputs, 4)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), 1)
    out = t.new(tokens * outputs, 2)
    if not (half and itemsize == 2):
        out = t.new(tokens * outputs, itemsize)
    del codes, product

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dense = t.new(weight.numel, itemsize, "temporaries")
        if t.work is not None:
            t.work.label("dequantization")
        dx = t.new(x_numel, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, inputs), itemsize)
        del dense
        return (dx,)

    return t.record(out, (x.node,), backward)


def _quantize_rows(t: Tape, x: Tensor, *, half: bool) -> Tensor:
    """``int8_vectorwise_quant``: int8 codes; on the way |x|, its mask, an fp16 copy of others."""
    wide = x if half and x.itemsize == LOW_BYTES else t.new(x.numel, LOW_BYTES)
    codes = t.new(x.numel, 1)
    size = t.new(x.numel, 2)
    mask = t.new(x.numel, 1)
    del size, mask, wide
    return codes
