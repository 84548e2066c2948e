"""Megatron-LM's ``MoEAllGatherTokenDispatcher``, its default: every rank sees all ranks' tokens.

Megatron-LM @ d98e8a64 ``megatron/core/transformer/moe/{token_dispatcher,moe_utils}.py``. Tokens of
the ranks that divide experts, and of those that divide one, are gathered; each rank picks the rows
of its own experts, and what these return is summed over the ranks.
"""

from __future__ import annotations

from vram_plan.estimator.ops.experts import INDEX_BYTES
from vram_plan.estimator.ops.megatron_experts import BOOLEAN, Dispatched, Routing, sent
from vram_plan.estimator.tape import Tape, Tensor


def dispatch(
    t: Tape, x: Tensor, probabilities: Tensor, routing_map: Tensor, s: Routing
) -> Dispatched:
    """Rows of this rank's experts with the probability of each."""
    everyones = _gather(t, probabilities, s)
    rows, index, own = _permute(t, x, routing_map, s)
    weights = _own_probabilities(t, everyones, own, s)
    return Dispatched(rows=rows, weights=weights, index=index)


def combine(t: Tape, x: Tensor, index: Tensor, s: Routing) -> Tensor:
    """Rows added into zeros for all tokens, which are summed over the ranks and scattered."""
    width = x.numel // s.own_tokens
    numel, itemsize, kept = x.numel, x.itemsize, index.storage
    summed = t.new(s.all_tokens * width, itemsize)
    out = t.new(s.tokens * width, itemsize) if s.gathered > 1 else summed
    del summed

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        whole = t.new(s.all_tokens * width, itemsize) if s.gathered > 1 else grad
        rows = t.new(numel, itemsize)
        del whole
        return (rows,)

    return t.record(out, (x.node,), backward)


def _gather(t: Tape, x: Tensor, s: Routing) -> Tensor:
    """All ranks' probabilities; their gradient is summed and scattered."""
    return sent(t, x, x.numel * s.gathered) if s.gathered > 1 else x


def _permute(t: Tape, x: Tensor, routing_map: Tensor, s: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of this rank's experts, the places they came from, and the map of those experts.

    The gathered tokens lie in a buffer that stays (``GlobalMemoryBuffer``); an argsort of the map
    of this rank's experts finds the rows, which ``index_select`` copies. Back, they are added into
    zeros for all tokens, which are summed over the ranks.
    """
    cells = s.own_experts * s.all_tokens
    everyone = t.new(routing_map.numel * s.gathered, BOOLEAN) if s.gathered > 1 else routing_map
    own = t.new(cells, BOOLEAN)
    turned, order = t.new(cells, BOOLEAN), t.new(cells, INDEX_BYTES)
    index = t.new(s.own_tokens, INDEX_BYTES)
    del everyone, turned, order
    width, itemsize, numel = x.numel // s.tokens, x.itemsize, x.numel
    kept = index.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        whole = t.new(s.all_tokens * width, itemsize)
        return (t.new(numel, itemsize) if s.gathered > 1 else whole,)

    rows = t.record(t.new(s.own_tokens * width, itemsize), (x.node,), backward)
    return rows, index, own


def _own_probabilities(t: Tape, x: Tensor, own: Tensor, s: Routing) -> Tensor:
    """One probability for each row: the columns of this rank's experts, turned, masked.

    ``masked_select`` keeps what it selects from, and the mask.
    """
    cells = s.own_experts * s.all_tokens
    columns = t.new(cells, x.itemsize)
    turned, mask = t.new(cells, x.itemsize), t.new(cells, BOOLEAN)
    del columns
    kept = (turned.storage, mask.storage)
    full, itemsize = x.numel, x.itemsize
    out = t.new(s.own_tokens, itemsize)
    del turned, mask

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        masked = t.new(cells, itemsize)
        again = t.new(cells, itemsize)
        del masked
        whole = t.new(full, itemsize)
        del again
        return (whole,)

    return t.record(out, (x.node,), backward)
