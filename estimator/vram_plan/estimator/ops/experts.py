"""Routing tokens to experts: what each step allocates and keeps.

Formulas are those of torch 2.13.0 (``tools/autograd/derivatives.yaml``,
``torch/csrc/autograd/FunctionsManual.cpp``); the operators are the ones that transformers 5.23.0
``integrations/moe.py`` and the routers of its sparse models call.
"""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.linear import AutocastWeight, edge_of
from vram_plan.estimator.tape import Param, Tape, Tensor

INDEX_BYTES = 8
"""Token and expert numbers are int64."""


def gather_rows(t: Tape, x: Tensor, index: Tensor, numel: int) -> Tensor:
    """``x[index]``: keeps the index; its gradient is scattered into zeros of x's size.

    ``index_backward`` (``aten/src/ATen/native/TensorAdvancedIndexing.cpp``): ``new_zeros``, then
    ``_index_put_impl_`` in place.
    """
    kept, full, itemsize = index.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(full, itemsize),)

    return t.record(t.new(numel, itemsize), (x.node,), backward)


def topk(t: Tape, x: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """``x.topk(k)``: values and their indices, which are kept.

    ``value_selecting_reduction_backward``: zeros of x's size, scattered into.
    """
    values, index = t.new(numel, x.itemsize), t.new(numel, INDEX_BYTES)
    kept, full, itemsize = index.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(full, itemsize),)

    return t.record(values, (x.node,), backward), index


def sum_last(t: Tape, x: Tensor, width: int, *, wide: bool) -> Tensor:
    """``x.sum(-1, keepdim=True)``: keeps nothing; the gradient is an expanded view.

    ``wide``: autocast has sums in fp32, so the gradient is cast back (and written out).
    """
    full, before = x.numel, x.itemsize
    itemsize = FP32_BYTES if wide else before

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad.view(full) if grad.itemsize == before else t.new(full, before),)

    return t.record(t.new(x.numel // width, itemsize), (x.node,), backward)


def sum_chosen(t: Tape, x: Tensor, chosen: int, *, wide: bool) -> Tensor:
    """``x.view(tokens, chosen, hidden).sum(dim=1)`` of x [tokens · chosen, hidden].

    Going back, the expanded gradient is written out when it takes x's shape again.
    """
    full, before = x.numel, x.itemsize
    out = t.new(x.numel // chosen, FP32_BYTES if wide else before)
    return t.record(out, (x.node,), lambda grad: (t.new(full, before),))


def divide_in_place(t: Tape, x: Tensor, total: Tensor) -> Tensor:
    """``x /= total``: keeps total and a copy of what x was, for the gradient of total."""
    before = t.new(x.numel, x.itemsize) if total.requires_grad and t.grad_enabled else None
    kept = (total.storage, before.storage if before is not None else None)
    rows = total.numel

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(grad.numel, grad.itemsize)
        # −grad · (x / total) / total, reduced to one number a row
        quotient, again = t.new(grad.numel, grad.itemsize), t.new(grad.numel, grad.itemsize)
        del quotient
        product = t.new(grad.numel, grad.itemsize)
        del again, product
        return dx, t.new(rows, grad.itemsize)

    out = Tensor(x.numel, x.itemsize, x.storage)
    return t.record(out, (x.node, total.node), backward)


def masked_fill(t: Tape, x: Tensor, mask: Tensor) -> Tensor:
    """``x.masked_fill(mask, number)``: keeps the mask; so does its gradient's fill."""
    kept = mask.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(t.new(x.numel, x.itemsize), (x.node,), backward)


def grouped_product(t: Tape, x: Tensor, weight: Param, inputs: int, offsets: Tensor) -> Tensor:
    """``grouped_mm(x, weight, offs)``: each group of rows of x by its expert's matrix.

    One kernel over the whole 3-D weight: x [rows, inputs] is kept where the weight learns, and the
    weight's gradient is one tensor of its size, however many experts were hit. Unlike a loop over
    ``weight[i]`` there is no full-size gradient for every expert.
    """
    rows = x.numel // inputs
    trains, x_needs = weight.trainable, x.requires_grad
    made = weight.copy.storage if isinstance(weight, AutocastWeight) and x_needs else None
    kept = (x.storage if trains and t.grad_enabled else None, offsets.storage, made)
    x_numel, x_itemsize = x.numel, x.itemsize
    made_as = weight.numel, weight.itemsize, weight.gradient

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dw = t.new(*made_as) if trains else None
        if t.work is not None and dw is not None:
            t.work.product((outputs, rows // experts, inputs), x_itemsize, batch=experts)
        dx = t.new(x_numel, x_itemsize) if x_needs else None
        if t.work is not None and dx is not None:
            t.work.product((rows // experts, outputs, inputs), x_itemsize, batch=experts)
        return dx, dw

    experts = weight.shape[0]
    outputs = weight.numel // (experts * inputs)
    edges = (x.node, edge_of(weight))
    out = t.compute(rows * outputs, x_itemsize)
    if t.work is not None:
        t.work.product((rows // experts, inputs, outputs), x_itemsize, batch=experts)
    saves = (x if trains else None, weight if x_needs else None, offsets)
    return t.record(out, edges, backward, packs=True, saves=saves)


def gather_bias(t: Tape, bias: Param, index: Tensor) -> Tensor:
    """``bias[index]``: one row of the experts' biases for every row of tokens."""
    kept, itemsize = index.storage, bias.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(bias.numel, itemsize, "gradients"),)

    rows = t.new(index.numel * (bias.numel // bias.shape[0]), itemsize)
    return t.record(rows, (bias if bias.trainable else None,), backward)


def add_in_place(t: Tape, x: Tensor, y: Tensor) -> Tensor:
    """``x.add_(y)``: saves nothing; both gradients are the incoming one."""
    out = Tensor(x.numel, x.itemsize, x.storage)
    return t.record(out, (x.node, y.node), lambda grad: (grad, grad.view()))


def add_rows(t: Tape, x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """``x.index_add_(0, index, rows)``: keeps the index; the rows' gradient is gathered."""
    kept, numel, itemsize = index.storage, rows.numel, rows.itemsize
    out = Tensor(x.numel, x.itemsize, x.storage)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return grad, t.new(numel, itemsize)

    return t.record(out, (x.node, rows.node), backward)


def pick(t: Tape, x: Tensor, index: Tensor) -> Tensor:
    """``x.gather(-1, index)``: keeps the index; zeros of x's size take the gradient."""
    return gather_rows(t, x, index, index.numel)


def sort_by_expert(
    t: Tape, pairs: int, experts: int
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """``sort``, ``histc`` and ``cumsum``: expert numbers, their order, and where groups end.

    The last is what else lives as long as the calling function: the histogram and its input.
    """
    ids, order = t.new(pairs, INDEX_BYTES), t.new(pairs, INDEX_BYTES)
    counted, histogram = t.new(pairs, FP32_BYTES), t.new(experts, FP32_BYTES)
    return ids, order, t.new(experts, FP32_BYTES), (counted, histogram)
