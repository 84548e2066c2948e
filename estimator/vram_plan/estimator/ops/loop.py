"""Experts one after another: a loop over slices of stacked weights.

Each slice is a view (``weight.view(experts, …)[i]``), so its gradient comes back through
``select_backward`` as a tensor of the whole weight's size, once for every expert that was hit.
"""

from __future__ import annotations

from vram_plan.estimator.tape import Node, Param, Tape, Tensor


class Stack:
    """A stacked weight [experts · rows, columns] as the loop sees it.

    The slices' gradients meet in front of the weight, where the engine adds them: the first two
    out of place, for both are views (``ViewBackward`` over ``select_backward``), then in place.
    """

    __slots__ = ("experts", "node", "tape", "weight")

    def __init__(self, t: Tape, weight: Param, experts: int) -> None:
        self.tape, self.weight, self.experts = t, weight, experts
        edge = weight if weight.trainable else None
        self.node: Node | None = None
        if t.needs(edge):
            whole = Tensor(weight.numel, weight.itemsize, None)
            self.node = t.record(whole, (edge,), lambda grad: (grad,)).node

    def slice(self) -> Tensor:
        """One expert's matrix: a view of the weight, which is counted elsewhere."""
        t, weight = self.tape, self.weight
        numel = weight.numel // self.experts

        def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
            return (t.new(weight.numel, weight.itemsize, "gradients").view(),)

        return t.record(Tensor(numel, weight.itemsize, None), (self.node,), backward)


def index_add(t: Tape, out: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """``out.index_add_(0, index, source)``: keeps both; the source's gradient is gathered.

    ``index_add`` in derivatives.yaml: ``grad.index_select(dim, index).expand_as(source)``.
    """
    kept, numel, itemsize = (index.storage, source.storage), source.numel, source.itemsize
    passes = out.node is not None

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return grad if passes else None, t.new(numel, itemsize)

    return t.record(Tensor(out.numel, out.itemsize, out.storage), (out.node, source.node), backward)
