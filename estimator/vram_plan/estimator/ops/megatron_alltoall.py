"""Megatron-LM's ``MoEAlltoAllTokenDispatcher``: tokens travel to the ranks of their experts.

Megatron-LM @ d98e8a64 ``megatron/core/transformer/moe/{token_dispatcher,moe_utils}.py``. A rank
sorts its own tokens by expert, exchanges them with the other expert ranks, gathers those of the
ranks that divide its experts and sorts once more; what the experts return goes back the same way.
"""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import copy
from vram_plan.estimator.ops.experts import INDEX_BYTES, gather_rows
from vram_plan.estimator.ops.megatron_experts import BOOLEAN, Dispatched, Routing, sent
from vram_plan.estimator.tape import Tape, Tensor


def dispatch(
    t: Tape, x: Tensor, probabilities: Tensor, routing_map: Tensor, s: Routing
) -> Dispatched:
    """Rows of this rank's experts with the probability of each."""
    rows, weights, index = _permute(t, x, probabilities, routing_map, s)
    received = _exchange(t, rows) if s.groups > 1 else rows
    weights = _exchange(t, weights) if s.groups > 1 else weights
    own, weights = (_sorted(t, _gather(t, one, s), s) for one in (received, weights))
    return Dispatched(rows=own, weights=weights, index=index, held=(rows, received))


def combine(t: Tape, x: Tensor, index: Tensor, s: Routing) -> Tensor:
    """Rows unsorted, summed over the ranks that divide an expert, sent back, added into zeros."""
    x = _scatter(t, _sorted(t, x, s), s)
    x = _exchange(t, x) if s.groups > 1 else x
    width, numel, itemsize = x.numel // (s.tokens * s.chosen), x.numel, x.itemsize
    kept = index.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize),)

    return t.record(t.new(s.tokens * width, itemsize), (x.node,), backward)


def _permute(
    t: Tape, x: Tensor, probabilities: Tensor, routing_map: Tensor, s: Routing
) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's rows by expert, the probability of each, and the places they came from.

    The probabilities are indexed by a slice of the whole argsort, which is kept with it.
    """
    cells, rows = s.tokens * s.experts, s.tokens * s.chosen
    turned, order = t.new(cells, BOOLEAN), t.new(cells, INDEX_BYTES)
    index = t.new(rows, INDEX_BYTES)
    columns = t.new(cells, probabilities.itemsize)
    weights = gather_rows(t, probabilities, order, rows)
    del turned, columns
    return gather_rows(t, x, index, rows * (x.numel // s.tokens)), weights, index


def _exchange(t: Tape, x: Tensor) -> Tensor:
    """``all_to_all``, as many rows as were sent; so does its gradient."""
    return sent(t, x, x.numel)


def _gather(t: Tape, x: Tensor, s: Routing) -> Tensor:
    ranks = s.gathered // s.groups
    return sent(t, x, x.numel * ranks) if ranks > 1 else x


def _scatter(t: Tape, x: Tensor, s: Routing) -> Tensor:
    ranks = s.gathered // s.groups
    return sent(t, x, x.numel // ranks) if ranks > 1 else x


def _sorted(t: Tape, x: Tensor, s: Routing) -> Tensor:
    """``sort_chunks_by_idxs``: pieces joined in another order; one expert needs none."""
    return copy(t, x) if s.own_experts > 1 else x
