"""How Falcon cuts its fused projection into queries, keys and values."""

from __future__ import annotations

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.broadcast import expanded
from vram_plan.estimator.ops.elementwise import copy, narrow
from vram_plan.estimator.tape import Tape, Tensor

INDEX_BYTES = 8

Parts = tuple[Tensor, Tensor, Tensor]


def kv_heads(f: Forward) -> int:
    """Key and value heads that the kernel sees on this rank: repeated ones count."""
    spec = f.spec
    heads = spec.num_attention_heads if spec.new_decoder_architecture else spec.num_key_value_heads
    return max(1, heads // f.how.tensor)


def split_heads(f: Forward, fused: Tensor) -> Parts:
    """``FalconAttention._split_heads``, transformers 5.23.0 ``models/falcon/``."""
    spec, t = f.spec, f.t
    width = fused.numel // (spec.query_dim + 2 * spec.kv_dim)
    queries, keys = width * spec.query_dim, width * spec.kv_dim
    if spec.new_decoder_architecture:
        parts = _groups(t, fused, queries, keys, single=spec.num_key_value_heads == 1)
    elif spec.num_key_value_heads == 1:
        parts = narrow(t, fused, queries), picked(t, fused, keys), picked(t, fused, keys)
    else:
        parts = narrow(t, fused, queries), narrow(t, fused, keys), narrow(t, fused, keys)
    for part in parts:
        part.by_token = True
    return parts


def _groups(t: Tape, fused: Tensor, queries: int, keys: int, *, single: bool) -> Parts:
    """Keys and values are repeated for their group, and all three are copied by ``flatten``.

    A ``single`` group is a dimension of one, which ``flatten`` joins to the next without a copy.
    """
    q, k, v = narrow(t, fused, queries), picked(t, fused, keys), picked(t, fused, keys)
    if single:
        return q, _expanded(t, k, queries), _expanded(t, v, queries)
    return copy(t, q), repeated(t, k, queries), repeated(t, v, queries)


def picked(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``x[..., [i], :]``: indexing with a list copies and keeps the list as a tensor.

    Going back it fills a tensor of x's size.
    """
    index = t.new(1, INDEX_BYTES).storage
    full, itemsize = x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = index
        return (t.new(full, itemsize),)

    return t.record(t.new(numel, itemsize), (x.node,), backward)


def _expanded(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``broadcast_to`` alone: a view of ``numel`` elements; the gradient is summed."""
    before, itemsize = x.numel, x.itemsize
    out = expanded(x, numel // before)
    return t.record(out, (x.node,), lambda grad: (t.new(before, itemsize),))


def repeated(t: Tape, x: Tensor, numel: int) -> Tensor:
    """``broadcast_to`` and ``flatten``: a copy with ``numel`` elements; the gradient is summed."""
    before, itemsize = x.numel, x.itemsize
    return t.record(t.new(numel, itemsize), (x.node,), lambda grad: (t.new(before, itemsize),))
