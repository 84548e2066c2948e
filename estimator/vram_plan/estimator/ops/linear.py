"""Matrix products of a weight: ``torch.nn.Linear`` and GPT-2's ``Conv1D``."""

from vram_plan.estimator.tape import Node, Param, Storage, Tape, Tensor

LOW_BYTES = 2
"""Bytes per element of what autocast casts to."""


def linear(
    t: Tape, x: Tensor, weight: Param, bias: Param | None, outputs: int, *, keeps: bool = False
) -> Tensor:
    """``x @ W.T + b``, x [batch, seq, inputs]: saves x where W learns, W where x needs a gradient.

    Without a bias ``mm`` makes the weight's gradient before the input's, with one ``addmm`` makes
    input, weight, bias. The input's gradient is a view: three dimensions become two on the way in
    (``aten/src/ATen/native/Linear.cpp``, torch 2.13.0); the weight's is one of its transpose.
    With ``keeps`` x is saved though W does not learn, as by what ZeRO 3 puts in its place
    (DeepSpeed 0.19.8 ``runtime/zero/linear.py``): a Python function, which saves when its output
    is there (torch 2.13.0 ``torch/csrc/autograd/python_function.cpp`` process_outputs).
    """
    inputs = weight.numel // outputs
    tokens = x.numel // inputs
    trains, x_needs = weight.trainable, x.requires_grad
    biased, offset = bias is not None, edge_of(bias)
    copy = weight.copy.storage if isinstance(weight, AutocastWeight) and x_needs else None
    kept: list[Storage | None] | None = [x.storage if trains or keeps else None, copy]
    x_numel, x_itemsize, flat = x.numel, x.itemsize, x.flat
    w_numel, w_itemsize = weight.numel, weight.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dw = t.new(w_numel, w_itemsize, "gradients").view() if trains and not biased else None
        if t.work is not None and dw is not None:
            t.work.product((outputs, tokens, inputs), x_itemsize)
        dx = t.new(x_numel, x_itemsize) if x_needs else None
        dx = dx.view() if dx is not None and not flat else dx
        if t.work is not None and dx is not None:
            t.work.product((tokens, outputs, inputs), x_itemsize)
        if trains and biased:
            dw = t.new(w_numel, w_itemsize, "gradients").view()
            if t.work is not None:
                t.work.product((outputs, tokens, inputs), x_itemsize)
        t.unpacked = []  # the function has returned when the engine sums (validate_outputs)
        if kept:  # and what it saved is gone
            kept.clear()
        db = t.new(outputs, grad.itemsize, "gradients") if offset else None
        return dx, dw, db

    edges = (x.node, edge_of(weight), offset)
    # Selective checkpointing recomputes the cheap low-rank products of adapters.
    cheap = weight.added or (t.selected is not None and t.selected.skips_product())
    make = t.new if cheap else t.compute
    out = make(tokens * outputs, x.itemsize)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), x.itemsize)
    saves = (x if trains or keeps else None, weight if x_needs else None)
    out = t.record(out, edges, backward, packs=True, saves=saves)
    return _saved_behind(t, out) if keeps else out


def _saved_behind(t: Tape, out: Tensor) -> Tensor:
    """What a Python function saves is packed when its output is there: recomputation makes it."""
    if t.rehearses and out.requires_grad:
        t.last_saved = t.made
    return out


def edge_of(weight: Param | None) -> Node | Param | None:
    """Where a weight's gradient goes; the cast behind a copy does not hold the copy."""
    if weight is None or not weight.trainable:
        return None
    return weight.copy.node if isinstance(weight, AutocastWeight) else weight


def cached_cast(t: Tape, weight: Param, itemsize: int, cache: dict[str, Tensor]) -> Param:
    """The low-precision copy of an fp32 weight that autocast makes once and keeps until it exits.

    ``aten/src/ATen/autocast_mode.cpp`` (torch 2.13.0), ``cached_cast``: only fp32 leaves that
    require a gradient are cached; a frozen weight is cast again at every use, and so is a view.
    """
    copy = cache.get(weight.name)
    if copy is None:
        copy = t.new(weight.numel, itemsize, "temporaries")
        if weight.trainable and t.grad_enabled and not weight.turned:
            cache[weight.name] = copy
    return AutocastWeight(weight, copy, t, flipped=weight.turned)


class AutocastWeight(Param):
    """A weight copy in compute precision whose gradient is cast back to the weight's dtype.

    ``flipped``: the transposed weight was cast, so that the gradient is a view.
    """

    __slots__ = ("copy",)

    def __init__(self, weight: Param, copy: Tensor, tape: Tape, *, flipped: bool = False) -> None:
        super().__init__(
            name=weight.name,
            numel=weight.numel,
            itemsize=copy.itemsize,
            trainable=weight.trainable,
            added=weight.added,
        )
        self.copy = copy
        if copy.node is None and weight.trainable:
            numel, itemsize = weight.numel, weight.itemsize

            def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
                back = tape.new(numel, itemsize, "gradients")
                return (back.view() if flipped else back,)

            tape.record(copy, (weight,), backward)

    def accumulate(self, grad: Tensor) -> None:
        """Hand the gradient to the copy's own backward, which casts it."""
        if self.copy.node is not None:
            self.copy.node.accumulate(grad)
