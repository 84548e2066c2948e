"""Transformer Engine's modules in 8 bits as Megatron-LM splits them over ranks.

NVIDIA/TransformerEngine @ d0067d0d ``transformer_engine/pytorch/module/layernorm_linear.py``,
``linear.py``, ``base.py`` ``grad_output_preprocess``, ``distributed.py`` ``_all_gather_fp8``.
Weights' 8-bit copies live as long as the model (``sharding/fp8_weights.py``).
"""

from __future__ import annotations

from vram_plan.estimator.fp8 import Eight
from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.megatron import Split
from vram_plan.estimator.tape import Param, Storage, Tape, Tensor

__all__ = ["norm_linear", "quantized", "row_linear", "weight_gradients"]


def quantized(t: Tape, eight: Eight, numel: int, *, both: bool = True) -> tuple[Tensor, Tensor]:
    """A tensor in 8 bits and the layout that the weight's gradient reads.

    They are one where products read a factor either way; without ``both`` the second is not made.
    """
    rows = t.new(eight.stored(numel), 1)
    if not both or not eight.transposes:
        return rows, rows
    return rows, t.new(eight.stored(numel), 1)


def weight_gradients(
    t: Tape, weights: tuple[Param, ...], tokens: int, itemsize: int
) -> list[Tensor]:
    """Gradients of a weight [outputs, inputs], written in 16 bits, and of its bias."""
    found = [t.new(w.numel, itemsize, "gradients") for w in weights if w.trainable]
    if t.work is not None and weights[0].trainable:
        outputs, inputs = weights[0].shape
        t.work.product((outputs, tokens, inputs), itemsize)
    return found


def norm_linear(
    t: Tape,
    x: Tensor,
    scale: tuple[Param, ...],
    weights: tuple[Param, ...],
    split: Split,
    eight: Eight,
) -> Tensor:
    """Norm and product by columns: keeps input, statistics and the normed input in 8 bits.

    Kept is the layout that the weight's gradient reads; under sequence parallelism that which can
    be gathered, the rows, unless scales are those of blocks.
    """
    outputs, width = weights[0].shape
    times = split.ranks if split.gathers else 1
    numel, itemsize = x.numel, x.itemsize
    tokens = numel * times // width
    stats = t.new(numel // width * max(len(scale), 1), FP32_BYTES)
    normed = None if eight.fuses_norm else t.new(numel, itemsize)
    by_rows = split.gathers and not eight.by_block
    rows, columns = quantized(t, eight, numel, both=not by_rows)
    del normed
    whole = t.new(eight.stored(numel * times), 1) if split.gathers else rows
    out = t.new(tokens * outputs, itemsize)
    if t.work is not None:
        t.work.product((tokens, width, outputs), itemsize)
    del whole, rows
    kept = (x.storage, columns.storage, stats.storage)
    del columns, stats

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        casts = quantized(t, eight, grad.numel)
        gathered = t.new(eight.stored(numel * times), 1) if split.gathers else None
        inner = t.new(numel * times, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, width), itemsize)
        scattered = t.new(numel, itemsize) if split.gathers else inner
        turned = t.new(numel * times, 1) if by_rows and eight.transposes else None
        made = weight_gradients(t, weights, tokens, itemsize)
        del gathered, inner, turned, casts
        dx = t.new(numel, itemsize)
        del scattered
        return (dx, *made, *(t.new(w.numel, w.itemsize, "gradients") for w in learning(scale)))

    edges = (x.node, *learning(weights), *learning(scale))
    return t.record(out, edges, backward, packs=True)


def learning(weights: tuple[Param, ...]) -> tuple[Param, ...]:
    """Those that have gradients."""
    return tuple(weight for weight in weights if weight.trainable)


def row_linear(
    t: Tape,
    x: Tensor,
    weights: tuple[Param, ...],
    split: Split,
    eight: Eight,
    *,
    original: bool = False,
) -> Tensor:
    """A product by rows: keeps its input in 8 bits, or the ``original`` that somebody else keeps.

    Going back gradients are gathered in 8 bits under sequence parallelism.
    """
    outputs, inputs = weights[0].shape
    numel, itemsize = x.numel, x.itemsize
    tokens = numel // inputs
    times = split.ranks if split.gathers else 1
    rows, columns = quantized(t, eight, numel, both=not original)
    summed = t.new(tokens * outputs, itemsize)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), itemsize)
    out = t.new(tokens * outputs // times, itemsize) if split.gathers else summed
    del summed, rows
    kept: Storage | None = x.storage if original else columns.storage
    del columns

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        own = t.new(eight.stored(grad.numel), 1) if split.gathers else None
        casts = quantized(t, eight, tokens * outputs)
        del own
        again = quantized(t, eight, numel) if original else None
        dx = t.new(numel, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, inputs), itemsize)
        made = weight_gradients(t, weights, tokens, itemsize)
        del casts, again
        return (dx, *made)

    return t.record(out, (x.node, *learning(weights)), backward, packs=True)
