"""Pointwise operators: what each keeps for backward (torch 2.13.0 ``derivatives.yaml``)."""

from vram_plan.estimator.tape import Param, Storage, Tape, Tensor

FP32_BYTES = 4


def _sum_to(t: Tape, grad: Tensor, numel: int, itemsize: int) -> Tensor:
    """Reduce a gradient to the shape and dtype of a broadcast or promoted input."""
    if grad.numel != numel:
        grad = t.new(numel, grad.itemsize)
    return grad if grad.itemsize == itemsize else t.new(numel, itemsize)


def cast(t: Tape, x: Tensor, itemsize: int, *, by_token: bool = False) -> Tensor:
    """``x.to(dtype)``: a copy unless the dtype is already right; saves nothing."""
    if x.itemsize == itemsize:
        return x
    before = x.itemsize
    out = t.record(t.new(x.numel, itemsize), (x.node,), lambda grad: (t.new(grad.numel, before),))
    out.by_token = by_token
    return out


def copy(t: Tape, x: Tensor) -> Tensor:
    """``contiguous()`` of a transposed tensor or ``clone()``: a copy; the gradient is a view."""
    return t.record(t.new(x.numel, x.itemsize), (x.node,), lambda grad: (grad.view(),))


def add(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    """``a + b`` with broadcasting and type promotion; saves nothing, passes the gradient on."""
    (an, ai), (bn, bi) = (a.numel, a.itemsize), (b.numel, b.itemsize)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (
            _sum_to(t, grad, an, ai) if a_needs else None,
            _sum_to(t, grad, bn, bi) if b_needs else None,
        )

    a_needs, b_needs = a.requires_grad, b.requires_grad
    return t.record(t.new(max(an, bn), max(ai, bi)), (a.node, b.node), backward)


def mul(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    """``a * b``: saves each factor the other one's gradient needs."""
    keep_a: Storage | None = a.storage if b.requires_grad else None
    keep_b: Storage | None = b.storage if a.requires_grad else None
    (an, ai), (bn, bi) = (a.numel, a.itemsize), (b.numel, b.itemsize)
    a_needs, b_needs = a.requires_grad, b.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        nonlocal keep_a, keep_b
        # Both products are made before the engine reduces either to its input's shape and dtype.
        da = t.new(grad.numel, grad.itemsize) if a_needs else None
        db = t.new(grad.numel, grad.itemsize) if b_needs else None
        if t.recomputed:  # what a checkpoint unpacked lives no longer than the formula
            keep_a = keep_b = None
        t.unpacked = []
        da = None if da is None else _sum_to(t, da, an, da.itemsize)
        da = None if da is None else _sum_to(t, da, an, ai)
        db = None if db is None else _sum_to(t, db, bn, db.itemsize)
        db = None if db is None else _sum_to(t, db, bn, bi)
        return da, db

    saves = (a if b_needs else None, b if a_needs else None)
    out = t.new(max(an, bn), max(ai, bi))
    return t.record(out, (a.node, b.node), backward, packs=True, saves=saves)


def scale(t: Tape, x: Tensor) -> Tensor:
    """``x * number`` and the like: saves nothing; the gradient is a new tensor."""
    return t.record(
        t.new(x.numel, x.itemsize), (x.node,), lambda grad: (t.new(grad.numel, grad.itemsize),)
    )


def negate(t: Tape, x: Tensor) -> Tensor:
    """``-x``: saves nothing; the gradient is a new tensor."""
    return t.record(
        t.new(x.numel, x.itemsize), (x.node,), lambda grad: (t.new(grad.numel, grad.itemsize),)
    )


def relayout(t: Tape, x: Tensor) -> Tensor:
    """``view(batch, seq, heads, dim).transpose(1, 2)``: a view.

    Undoing it copies the gradient (``view_backward`` reshapes) unless that is laid out by tokens,
    as fused attention kernels make it.
    """
    out = Tensor(x.numel, x.itemsize, x.storage)
    out.by_token = True

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad.view() if grad.by_token else t.new(grad.numel, grad.itemsize),)

    return t.record(out, (x.node,), backward)


def subtract(t: Tape, a: Tensor, b: Tensor) -> Tensor:
    """``a - b`` with broadcasting of b: saves nothing; the gradient of b is a new tensor."""
    bn, bi = b.numel, b.itemsize
    a_needs, b_needs = a.requires_grad, b.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        db = _sum_to(t, t.new(grad.numel, grad.itemsize), bn, bi) if b_needs else None
        return grad if a_needs else None, db

    return t.record(t.new(a.numel, a.itemsize), (a.node, b.node), backward)


def shift(t: Tape, x: Tensor) -> Tensor:
    """``x + number``: saves nothing and passes the gradient on."""
    return t.record(t.new(x.numel, x.itemsize), (x.node,), lambda grad: (grad,))


def from_input(t: Tape, x: Tensor, *, temporaries: int = 0) -> Tensor:
    """A function whose backward needs its input and ``temporaries`` more tensors of its size."""
    kept = x.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        held = [t.new(grad.numel, grad.itemsize) for _ in range(temporaries)]
        result = t.new(grad.numel, grad.itemsize)
        held.clear()
        return (result,)

    return t.record(t.new(x.numel, x.itemsize), (x.node,), backward, saves=(x,))


def from_output(t: Tape, x: Tensor) -> Tensor:
    """A function whose backward needs its output."""
    out = t.new(x.numel, x.itemsize)
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(out, (x.node,), backward)


def clamp(t: Tape, x: Tensor, *, sides: int = 2) -> Tensor:
    """``x.clamp(min, max)``: keeps x; going back one boolean mask for each of its ``sides``.

    ``clamp_backward``: ``where(min <= x <= max, grad, 0)``.
    """
    kept, numel, itemsize = x.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        zero = t.new(1, itemsize)
        masks = [t.new(numel, 1) for _ in range(sides)]
        result = t.new(numel, itemsize)
        masks.clear()
        del zero
        return (result,)

    return t.record(t.new(numel, itemsize), (x.node,), backward)


def clamp_in_place(t: Tape, x: Tensor) -> Tensor:
    """``x.clamp_(…)``: writes over x and keeps a copy of what it was; backward masks.

    ``clamp_`` saves its input, which the in-place kernel is given as a clone (``self.clone()`` in
    ``torch/csrc/autograd/generated/VariableType``, torch 2.13.0).
    """
    out = Tensor(x.numel, x.itemsize, x.storage)
    if not t.needs(x.node):
        return out
    before = t.new(x.numel, x.itemsize)
    kept = before.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(out, (x.node,), backward)


def maximum(t: Tape, x: Tensor) -> Tensor:
    """``torch.max(x, number)``: keeps x; backward compares twice and halves ties on the way."""
    kept = x.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        ties, halved = t.new(grad.numel, 1), t.new(grad.numel, grad.itemsize)
        result = t.new(grad.numel, grad.itemsize)
        del ties, halved
        return (result,)

    return t.record(t.new(x.numel, x.itemsize), (x.node,), backward)


def tanh(t: Tape, x: Tensor) -> Tensor:
    """``tanh``: its backward needs its output."""
    return from_output(t, x)


def power(t: Tape, x: Tensor) -> Tensor:
    """``x.pow(n)``: saves the input; backward makes ``x^(n-1)`` and ``n·x^(n-1)`` on the way.

    ``torch/csrc/autograd/FunctionsManual.cpp``, ``pow_backward``.
    """
    return from_input(t, x, temporaries=2)


def dropout(t: Tape, x: Tensor, probability: float) -> Tensor:
    """``dropout`` in training: saves a mask of one byte an element; nothing at probability 0."""
    if not probability or not t.training:
        return x
    mask = t.new(x.numel, 1)
    kept = mask.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(t.new(x.numel, x.itemsize), (x.node,), backward)


def concat(t: Tape, parts: tuple[Tensor, ...]) -> Tensor:
    """``cat``: a new tensor; gradients are slices of the incoming one (views)."""
    sizes = tuple(part.numel for part in parts)
    numel, itemsize = sum(sizes), max(part.itemsize for part in parts)
    needs = tuple(part.requires_grad for part in parts)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            grad.view(size) if need else None for size, need in zip(sizes, needs, strict=True)
        )

    return t.record(t.new(numel, itemsize), tuple(part.node for part in parts), backward)


def narrow(t: Tape, x: Tensor, numel: int) -> Tensor:
    """A slice (``chunk``, ``[..., a:b]``): a view; its backward fills a tensor of x's size."""
    full, itemsize = x.numel, x.itemsize
    out = Tensor(numel, x.itemsize, x.storage)
    return t.record(out, (x.node,), lambda grad: (t.new(full, itemsize),))


def reduce_last(t: Tape, x: Tensor, width: int) -> Tensor:
    """``mean``/``sum`` over the last dimension: the gradient is an expanded view, then divided."""
    full = x.numel

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (t.new(full, grad.itemsize),)

    return t.record(t.new(x.numel // width, x.itemsize), (x.node,), backward)


def weight_product(t: Tape, x: Tensor, weight: Param) -> Tensor:
    """``weight * x`` with a vector weight (the scale of a norm, the vectors of IA³)."""
    keep_x = x.storage if weight.trainable and t.grad_enabled else None
    numel, itemsize = x.numel, max(x.itemsize, weight.itemsize)
    x_itemsize, x_needs = x.itemsize, x.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = keep_x
        dw = None
        dx = t.new(grad.numel, grad.itemsize) if x_needs else None
        if weight.trainable:
            full = t.new(grad.numel, grad.itemsize)
            dw = t.new(weight.numel, weight.itemsize, "gradients")
            del full
        t.unpacked = []
        if dx is not None and dx.itemsize != x_itemsize:
            dx = t.new(grad.numel, x_itemsize)
        return dw, dx

    edge = weight if weight.trainable else None
    saves = (x if edge else None, weight if x_needs else None)
    return t.record(t.new(numel, itemsize), (edge, x.node), backward, packs=True, saves=saves)
