"""Attention with a learned sink: one more score per head that no value belongs to."""

from __future__ import annotations

from vram_plan.estimator.ops.attention import (
    Heads,
    batched_product,
    low,
    merged,
    repeat_kv,
    softmax,
)
from vram_plan.estimator.ops.elementwise import add, cast, dropout, narrow, scale
from vram_plan.estimator.ops.experts import INDEX_BYTES
from vram_plan.estimator.tape import Param, Tape, Tensor


def sink_attention(
    t: Tape, parts: tuple[Tensor, Tensor, Tensor], sinks: Param, s: Heads
) -> tuple[Tensor, Tensor]:
    """``eager_attention_forward`` of transformers 5.23.0 ``models/gpt_oss/modeling_gpt_oss.py``.

    Returns the probabilities too, which the layer holds. The softmax stays in the scores' dtype;
    the largest score of a row is subtracted first.
    """
    q, k, v = parts
    keys, values = repeat_kv(t, k, s), repeat_kv(t, v, s)
    weights = scale(t, batched_product(t, low(t, q, s), low(t, keys, s), s.scores, s.head_dim))
    weights = add(t, weights, Tensor(0, q.itemsize, None))
    combined = append_sinks(t, weights, sinks, s)
    combined = subtract_largest(t, combined, s)
    probabilities = softmax(t, combined, combined.itemsize, half_to_float=False)
    weights = dropout(t, narrow(t, probabilities, s.scores), s.dropout)
    weights = cast(t, weights, values.itemsize)
    numel = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, low(t, weights, s, flat=True), low(t, values, s), numel, s.kv_seq)
    out = merged(t, out, s)
    del combined, probabilities
    return out, weights


def with_sinks(t: Tape, out: Tensor, sinks: Param) -> Tensor:
    """The output of a flash kernel that reads the sinks: their gradient comes with the others."""
    edge = sinks if sinks.trainable else None
    same = Tensor(out.numel, out.itemsize, out.storage)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, t.new(sinks.numel, sinks.itemsize, "gradients") if edge is not None else None

    return t.record(same, (out.node, edge), backward)


def append_sinks(t: Tape, weights: Tensor, sinks: Param, s: Heads) -> Tensor:
    """``cat([weights, sinks.expand(…)], dim=-1)``: the sinks' gradient is summed over all rows."""
    numel = weights.numel
    edge = sinks if sinks.trainable else None

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        dsinks = t.new(sinks.numel, sinks.itemsize, "gradients") if edge is not None else None
        return grad.view(numel), dsinks

    rows = s.batch * s.heads * s.seq
    return t.record(t.new(numel + rows, weights.itemsize), (weights.node, edge), backward)


def subtract_largest(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """``x - x.max(dim=-1, keepdim=True).values``: keeps where the largest were."""
    rows = s.batch * s.heads * s.seq
    values, index = t.new(rows, x.itemsize), t.new(rows, INDEX_BYTES)
    kept, full, itemsize = index.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(full, itemsize),)

    t.record(values, (x.node,), backward)
    needs = x.requires_grad

    def difference(grad: Tensor) -> tuple[Tensor | None, ...]:
        negated = t.new(grad.numel, grad.itemsize)
        total = t.new(rows, grad.itemsize)
        del negated
        return grad if needs else None, total

    return t.record(t.new(x.numel, itemsize), (x.node, values.node), difference)
