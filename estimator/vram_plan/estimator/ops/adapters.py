"""Operators that only training methods use: small weights taken apart, scaled and repeated."""

from __future__ import annotations

from vram_plan.estimator.ops.embedding import LeafVariable
from vram_plan.estimator.tape import Node, Param, Tape, Tensor


def clone(t: Tape, x: Tensor) -> Tensor:
    """``x.clone()``: a copy; the gradient passes unchanged."""
    return t.record(t.new(x.numel, x.itemsize), (x.node,), lambda grad: (grad,))


def add_in_place(t: Tape, x: Tensor, y: Tensor, *, viewed: bool = False) -> Tensor:
    """``x += y``: saves nothing; y's gradient is cast to its dtype where that differs.

    ``viewed``: x is a view, so x's gradient is a copy, and the sum's works on another (torch 2.13.0
    ``torch/csrc/autograd/functions/tensor.cpp`` ``CopySlices::apply_impl``).
    """
    itemsize, x_needs, y_needs = y.itemsize, x.requires_grad, y.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        if viewed:
            whole, grad = (t.new(grad.numel, grad.itemsize) for _ in range(2))
        else:
            whole = grad
        dy = None
        if y_needs:
            dy = grad if grad.itemsize == itemsize else t.new(grad.numel, itemsize)
        return whole if x_needs else None, dy

    out = Tensor(x.numel, x.itemsize, x.storage)
    return t.record(out, (x.node, y.node), backward)


def weight_copy(t: Tape, weight: Param, *, adds: bool = False) -> Tensor:
    """``1 * weight`` (``adds``: ``weight + number``): its gradient comes back through the copy."""
    edge = weight if weight.trainable else None
    numel, itemsize = weight.numel, weight.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad if adds else t.new(numel, itemsize, "gradients"),)

    return t.record(t.new(numel, itemsize), (edge,), backward)


def weight_view(t: Tape, weight: Param) -> Tensor:
    """``weight.T``: a view of a weight, which has no bytes on the tape."""
    edge = weight if weight.trainable else None
    return t.record(Tensor(weight.numel, weight.itemsize, None), (edge,), lambda grad: (grad,))


def weight_cast(t: Tape, weight: Param, itemsize: int, *, turned: bool = False) -> Tensor:
    """``weight.T`` in another type, as autocast's: no activation; back, a gradient.

    ``turned``: the view's dimensions are no two of the weight's, so a gradient in their order is
    laid out anew.
    """
    view, numel, before = weight_view(t, weight), weight.numel, weight.itemsize
    if turned:
        view = t.record(
            Tensor(numel, before, None),
            (view.node,),
            lambda grad: (t.new(numel, before, "gradients"),),
        )
    if before == itemsize:
        return view
    copied = t.new(numel, itemsize, "temporaries")
    return t.record(copied, (view.node,), lambda grad: (t.new(numel, before, "gradients"),))


def weight_quotient(t: Tape, weight: Param, divisor: Tensor) -> Tensor:
    """``weight / divisor`` with a divisor that needs no gradient, which is kept."""
    kept = divisor.storage
    edge = weight if weight.trainable else None
    numel, itemsize = weight.numel, weight.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize, "gradients"),)

    return t.record(t.new(numel, itemsize), (edge,), backward)


def weights_product(t: Tape, matrix: Param, column: Param) -> Tensor:
    """``matrix * column`` of two weights [rows, width] and [rows, 1]; keeps nothing else."""
    edges = (matrix if matrix.trainable else None, column if column.trainable else None)
    itemsize = matrix.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = edges
        dm = t.new(matrix.numel, itemsize, "gradients") if first else None
        full = t.new(matrix.numel, itemsize) if second else None
        dc = t.new(column.numel, itemsize, "gradients") if second else None
        del full
        return dm, dc

    saves = (matrix if edges[1] else None, column if edges[0] else None)
    return t.record(t.new(matrix.numel, itemsize), edges, backward, packs=True, saves=saves)


def product(t: Tape, x: Tensor, weight: Tensor, outputs: int) -> Tensor:
    """``x @ W.T`` where W [outputs, inputs] was computed: each factor is kept for the other."""
    inputs = weight.numel // outputs
    rows = x.numel // inputs
    keep_x = x.storage if weight.requires_grad else None
    keep_w = weight.storage if x.requires_grad else None
    (xn, xi, x_needs) = (x.numel, x.itemsize, x.requires_grad)
    (wn, wi, w_needs) = (weight.numel, weight.itemsize, weight.requires_grad)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = keep_x, keep_w
        dw = t.new(wn, wi) if w_needs else None
        if t.work is not None and dw is not None:
            t.work.product((outputs, rows, inputs), xi)
        dx = t.new(xn, xi).view() if x_needs else None
        if t.work is not None and dx is not None:
            t.work.product((rows, outputs, inputs), xi)
        return dx, dw

    out = t.new(rows * outputs, x.itemsize)
    if t.work is not None:
        t.work.product((rows, inputs, outputs), x.itemsize)
    saves = (x if w_needs else None, weight if x_needs else None)
    return t.record(out, (x.node, weight.node), backward, saves=saves)


def divide(t: Tape, x: Tensor, divisor: Tensor) -> Tensor:
    """``x / divisor`` with a divisor of one element: the divisor is kept, x if that learns.

    ``div_tensor_other_grad`` (torch 2.13.0 ``FunctionsManual.cpp``): −grad · ((x / d) / d), whose
    parts live until the whole is there.
    """
    learns, itemsize = divisor.requires_grad, x.itemsize
    kept = (divisor.storage, x.storage if learns else None)
    numel, d_itemsize = x.numel, divisor.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dd = _divisor_gradient(t, numel, grad.itemsize) if learns else None
        dx = t.new(numel, grad.itemsize)
        if dd is not None:
            dd = t.new(1, d_itemsize)
        return (dx if grad.itemsize == itemsize else t.new(numel, itemsize)), dd

    out = t.new(numel, max(itemsize, d_itemsize))
    return t.record(out, (x.node, divisor.node), backward)


def _divisor_gradient(t: Tape, numel: int, itemsize: int) -> Tensor:
    parts = [t.new(numel, itemsize) for _ in range(3)]
    result = t.new(numel, itemsize)
    parts.clear()
    return result


def repeat(t: Tape, x: Tensor, times: int) -> Tensor:
    """``x.repeat(times, 1, 1)``: keeps nothing; gradients of the copies are summed."""
    numel, itemsize = x.numel, x.itemsize
    return t.record(
        t.new(numel * times, itemsize), (x.node,), lambda grad: (t.new(numel, itemsize),)
    )


def prepend(t: Tape, first: Tensor, x: Tensor, numel: int, *, batch: int) -> Tensor:
    """``cat((first, x), dim=1)``, ``numel`` elements together in ``batch`` sequences.

    Embeddings that were asked for their gradient keep it, and the graph keeps them, until the loss
    goes. With several sequences it is a slice with gaps, so ``AccumulateGrad`` copies it
    (``torch/csrc/autograd/functions/accumulate_grad.h``, torch 2.13.0).
    """
    size, x_needs, leaf = first.numel, x.requires_grad, isinstance(x.node, LeafVariable)
    if leaf:
        t.attach(x.storage)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dx = grad.view(numel - size) if x_needs else None
        if leaf:
            dx = t.new(numel - size, grad.itemsize, "gradients") if batch > 1 else dx
            t.attach(dx.storage if dx is not None else None)
        return grad.view(size), dx

    return t.record(t.new(numel, first.itemsize), (first.node, x.node), backward)


def cut_prefixes(
    t: Tape, past: Tensor, numel: int, late: list[Tensor], *, twice: bool = False
) -> tuple[list[Tensor], Node | None]:
    """Keys and values of ``numel`` elements for every layer, copied out of all layers' ``past``.

    Going back, a slice of the gradient of prefixed keys keeps all of it, and so for values, in
    every layer (``late``). Each layer's pair is stacked (``unbind_backward``), the stacks are
    joined in one tensor (``split_backward``) and that is laid out as the table is. ``twice``: an
    encoder-decoder gets ``past`` a second time, for cross-attention, whose cache is dropped.

    Returns:
        The copies, and the function that cut them.
    """
    size, itemsize = past.numel, past.itemsize
    if twice:
        past = Tensor(2 * size, itemsize, t.new(2 * size, itemsize).storage, past.node)
    pieces = [t.new(numel, itemsize) for _ in range(past.numel // numel)]
    del pieces[size // numel :]

    def join(grad: Tensor) -> tuple[Tensor | None, ...]:
        first = t.new(2 * numel, itemsize)
        late.clear()
        others = t.new(size - 2 * numel, itemsize)
        stacks = [first, others]
        del first, others
        if twice:  # beside zeros for cross-attention, whose halves are added up
            stacks = [t.new(2 * size, itemsize)]
        joined = t.new(size * (1 + twice), itemsize)
        stacks.clear()
        if twice:
            joined = t.new(size, itemsize)
        laid_out = t.new(size, itemsize)
        del joined
        return (laid_out,)

    return pieces, t.record(Tensor(0, itemsize, None), (past.node,), join).node


def folded(t: Tape, weight: Param, left: Tensor, right: Tensor) -> Tensor:
    """``baddbmm(weight, left, right, alpha)`` with a frozen weight: keeps both factors.

    Going back, the product with the other factor is multiplied by alpha into a new tensor
    (``maybe_multiply``, torch 2.13.0 ``tools/autograd/derivatives.yaml``).
    """
    kept = left.storage, right.storage
    sizes = (left.numel, left.itemsize), (right.numel, right.itemsize)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return tuple(scaled(numel, itemsize) for numel, itemsize in sizes)

    def scaled(numel: int, itemsize: int) -> Tensor:
        product = t.new(numel, itemsize, "gradients")  # by views and casts a weight's
        if t.work is not None:
            other = sizes[0][0] + sizes[1][0] - numel
            t.work.batched((weight.numel, other, numel), weight.numel * inner, itemsize)
        out = t.new(numel, itemsize, "gradients")
        del product
        return out

    out = t.new(weight.numel, weight.itemsize)
    inner = left.numel * weight.shape[-1] // weight.numel
    if t.work is not None:
        sides = left.numel, right.numel, weight.numel
        t.work.batched(sides, weight.numel * inner, weight.itemsize)
    return t.record(out, (left.node, right.node), backward, packs=True, saves=(left, right))
