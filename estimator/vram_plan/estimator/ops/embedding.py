"""Lookups in a table of weights."""

from vram_plan.estimator.tape import Param, Tape, Tensor


def embedding(
    t: Tape, indices: Tensor, table: Param, width: int, *, joins: bool = False
) -> Tensor:
    """``torch.nn.Embedding``: keeps the indices; its gradient is a dense table.

    ``embedding_dense_backward`` (torch 2.13.0) fills a tensor of the whole table's size even when
    a batch touches few rows. ``joins``: a tied head's gradient waits for it. That one is a view
    (``TBackward``), which the engine never adds to in place (``input_buffer.cpp``,
    ``can_accumulate_inplace``), so their sum is a third table.
    """
    out = t.new(indices.numel * width, table.itemsize)
    if not table.trainable:
        return out
    kept = indices.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dense = t.new(table.numel, table.itemsize, "gradients")
        if joins:
            joined = t.new(table.numel, table.itemsize, "gradients")
            del joined
        return (dense,)

    return t.record(out, (table,), backward)
