"""``split`` and ``chunk``: several views of one tensor behind one backward function."""

from __future__ import annotations

from vram_plan.estimator.tape import Node, Tape, Tensor


class Part(Node):
    """One output of a split: gradients wait here until the split itself runs."""

    __slots__ = ("index", "owner", "waiting")

    def __init__(self, owner: Node, waiting: list[Tensor | None], index: int) -> None:
        super().__init__(lambda grad: (), (), owner.component)
        self.owner, self.waiting, self.index = owner, waiting, index

    def accumulate(self, grad: Tensor) -> None:
        """Add to this output's gradient and let the split know that it has to run."""
        self.grad = self.waiting[self.index]
        self.waiting[self.index] = None
        super().accumulate(grad)
        self.waiting[self.index], self.grad = self.grad, None
        if self.owner.grad is None:
            self.owner.grad = Tensor(0, grad.itemsize, None)


def split(t: Tape, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Views of ``sizes`` elements; going back their gradients are joined in one new tensor.

    ``split_backward`` (torch 2.13.0 ``FunctionsManual.cpp``): outputs without a gradient get
    zeros, then ``cat``.
    """
    parts = tuple(Tensor(size, x.itemsize, x.storage) for size in sizes)
    waiting: list[Tensor | None] = [None] * len(sizes)
    itemsize = x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        held = [
            t.new(size, itemsize) if part is None else part
            for size, part in zip(sizes, waiting, strict=True)
        ]
        waiting.clear()
        joined = t.new(sum(part.numel for part in held), itemsize)
        held.clear()
        return (joined,)

    owner = t.record(Tensor(0, itemsize, None), (x.node,), backward).node
    if owner is not None:
        for index, part in enumerate(parts):
            part.node = Part(owner, waiting, index)
    return parts
