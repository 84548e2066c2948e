"""Lookups in a table of weights."""

from vram_plan.estimator.tape import Param, Tape, Tensor


def embedding(t: Tape, indices: Tensor, table: Param, width: int) -> Tensor:
    """``torch.nn.Embedding``: keeps the indices; its gradient is a dense table.

    ``embedding_dense_backward`` (torch 2.13.0) fills a tensor of the whole table's size even when
    a batch touches few rows.
    """
    out = t.new(indices.numel * width, table.itemsize)
    if not table.trainable:
        return out
    kept = indices.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(table.numel, table.itemsize, "gradients"),)

    return t.record(out, (table,), backward)
