"""Lookups in a table of weights."""

from vram_plan.estimator.tape import Leaf, Param, Storage, Tape, Tensor


def embedding(t: Tape, indices: Tensor, table: Param, width: int, *, joins: bool = False) -> Tensor:
    """``torch.nn.Embedding``: keeps the indices; its gradient is a dense table.

    ``embedding_dense_backward`` (torch 2.13.0) fills a tensor of the whole table's size even when
    a batch touches few rows. ``joins``: a tied head's gradient waits for it, a view that is
    never added to in place (``input_buffer.cpp``, ``can_accumulate_inplace``), so their sum is a
    third table.
    """
    out = t.new(indices.numel * width, table.itemsize)
    if not table.trainable:
        return out
    kept = indices.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(table.numel, table.itemsize, "gradients"),)

    edge = _Joined(table, t) if joins else table
    return t.record(out, (edge,), backward, saves=(indices,))


class LeafVariable(Leaf):
    """A tensor made to require a gradient: autograd's graph (``AccumulateGrad``) holds it."""

    __slots__ = ("storage",)

    def __init__(self, storage: Storage | None) -> None:
        super().__init__()
        self.storage = storage


class _Joined(Param):
    """A table whose other gradient cannot be added to in place."""

    __slots__ = ("table", "tape")

    def __init__(self, table: Param, tape: Tape) -> None:
        super().__init__(
            name=table.name, numel=table.numel, itemsize=table.itemsize, trainable=True
        )
        self.table, self.tape = table, tape

    def accumulate(self, grad: Tensor) -> None:
        """Make the sum, which takes the place of both."""
        total = self.tape.new(grad.numel, grad.itemsize, "gradients")
        self.table.accumulate(total)
