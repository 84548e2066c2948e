"""Matrix products with a frozen quantized weight."""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.quantization import BNB_BLOCK
from vram_plan.estimator.tape import Param, Tape, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBit:
    """What happens besides, by version and dtypes.

    Attributes:
        keeps_input: the input hangs on the node's context (bitsandbytes until 0.43.1).
        origin_bytes: bytes per element of the dtype that the weights were quantized from, where
            the product's is another: they are written out in it and cast (``dequantize_4bit(…)
            .to(A.dtype)``, bitsandbytes 0.50.2 ``autograd/_functions.py``); else 0.
    """

    keeps_input: bool = False
    origin_bytes: int = 0


def dequantized_linear(
    t: Tape, x: Tensor, weight: Param, outputs: int, *, nested: bool, old: FourBit = FourBit()
) -> Tensor:
    """``MatMul4Bit``: the weight is written out in 16 bits going forward and going back.

    bitsandbytes 0.50.2 ``autograd/_functions.py``; above 1,536 rows the CUDA backend always takes
    this way (``backends/cuda/ops.py``); below, its fused kernel needs no copy going forward, and
    the backward pass is the fuller moment anyway. Nothing but the weight is kept.
    """
    inputs = weight.numel // outputs
    tokens = x.numel // inputs
    blocks = -(-weight.numel // BNB_BLOCK)
    x_numel, itemsize = x.numel, x.itemsize

    def dequantize() -> Tensor:
        scales = t.new(blocks, FP32_BYTES, "temporaries") if nested else None
        dense = t.new(weight.numel, old.origin_bytes or itemsize, "temporaries")
        del scales
        if old.origin_bytes:
            dense = t.new(weight.numel, itemsize, "temporaries")
        return dense

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dense = dequantize()
        dx = t.new(x_numel, itemsize)
        del dense
        return (dx,)

    if old.keeps_input and t.needs(x.node):
        t.attach(x.storage)
    dense = dequantize()
    out = t.compute(tokens * outputs, itemsize)
    del dense
    return t.record(out, (x.node,), backward)


def int8_linear(t: Tape, x: Tensor, weight: Param, outputs: int, *, half: bool) -> Tensor:
    """``MatMul8bitLt`` with an outlier threshold: attaches its input, multiplies in int8.

    bitsandbytes 0.50.2 ``autograd/_functions.py``: the input is cast to fp16 (a copy for bf16),
    its outliers are found (``A.abs()`` and a mask), it is quantized row by row, the product is
    int32, then fp16, then the input's dtype. Going back the int8 weight is written out in the
    input's dtype. Left out: the columns with outliers, which are few.
    """
    inputs = weight.numel // outputs
    tokens = x.numel // inputs
    x_numel, itemsize = x.numel, x.itemsize
    if t.needs(x.node):
        t.attach(x.storage)  # ctx.tensors, not save_for_backward

    codes = _quantize_rows(t, x, half=half)
    product = t.new(tokens * outputs, 4)
    out = t.new(tokens * outputs, 2)
    del product
    if not (half and itemsize == 2):
        out = t.new(tokens * outputs, itemsize)
    del codes

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dense = t.new(weight.numel, itemsize, "temporaries")
        dx = t.new(x_numel, itemsize)
        del dense
        return (dx,)

    return t.record(out, (x.node,), backward)


def _quantize_rows(t: Tape, x: Tensor, *, half: bool) -> Tensor:
    """``int8_vectorwise_quant``: int8 codes; on the way |x|, its mask and for bf16 an fp16 copy."""
    wide = x if half else t.new(x.numel, 2)
    codes = t.new(x.numel, 1)
    size = t.new(x.numel, 2)
    mask = t.new(x.numel, 1)
    del size, mask, wide
    return codes
