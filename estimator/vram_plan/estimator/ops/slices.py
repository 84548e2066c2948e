"""Tensors put together slice by slice, expanded and padded."""

from __future__ import annotations

from vram_plan.estimator.tape import Node, Tape, Tensor


def fill(t: Tape, parts: tuple[Tensor, ...]) -> Tensor:
    """``new_empty`` and a ``copy_`` into a slice of it for each part.

    Each copy is a ``CopySlices`` node (torch 2.13.0 ``torch/csrc/autograd/functions/tensor.cpp``):
    going back it makes a tensor like the whole and a copy of the slice, and hands both on; zeros
    for the slice of the first are made where there was a gradient to hand on.
    """
    numel, itemsize = sum(part.numel for part in parts), parts[0].itemsize
    out = t.new(numel, itemsize)
    for part in parts:
        out = _copy_slice(t, out, part)
    return out


def _copy_slice(t: Tape, whole: Tensor, part: Tensor) -> Tensor:
    numel, itemsize, size = whole.numel, whole.itemsize, part.numel
    before: Node | None = whole.node
    chained = before is not None

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        rest = t.new(numel, itemsize)
        copied = t.new(size, itemsize)
        if chained:
            zeros = t.new(size, itemsize)
            del zeros
        return rest, copied

    return t.record(Tensor(numel, itemsize, whole.storage), (before, part.node), backward)


def expand(t: Tape, x: Tensor, times: int) -> Tensor:
    """``x.expand(…)``: a view; its gradient is summed."""
    if times == 1:
        return x
    numel, itemsize = x.numel, x.itemsize
    out = Tensor(numel * times, itemsize, x.storage)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def pad(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``functional.pad`` of the last dimension: a copy; so is its gradient."""
    before, itemsize = x.numel, x.itemsize
    return t.record(t.new(numel, itemsize), (x.node,), lambda grad: (t.new(before, itemsize),))


def crop(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``x[..., :n]`` made contiguous: a copy; its gradient fills a tensor of x's size."""
    full, itemsize = x.numel, x.itemsize
    return t.record(t.new(numel, itemsize), (x.node,), lambda grad: (t.new(full, itemsize),))


def place(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``new_zeros(numel).index_copy(1, index, x.reshape(...))``: keeps the laid-out copy of x.

    ``index_copy`` keeps its source for the gradient's shape (``expand_as`` in torch 2.1
    ``tools/autograd/derivatives.yaml``).
    """
    zeros = t.new(numel, x.itemsize)
    source = t.new(x.numel, x.itemsize)
    out = t.new(numel, x.itemsize)
    del zeros
    kept, size, itemsize = source.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(size, itemsize),)

    return t.record(out, (x.node,), backward)
