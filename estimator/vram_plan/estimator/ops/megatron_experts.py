"""Operators of Megatron-LM's experts: routing, tokens to experts and back, grouped products.

Megatron-LM @ d98e8a64 ``megatron/core/transformer/moe`` (``router.py``, ``moe_utils.py``,
``token_dispatcher.py``, ``experts.py``) with the dispatcher that is its default, ``allgather``:
tokens of all tensor- and expert-parallel ranks are gathered, each rank picks those of its own
experts, and what they return is summed over the ranks. Experts are taken as evenly loaded; losses
that balance them are off, as by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.ops.experts import INDEX_BYTES, topk
from vram_plan.estimator.tape import Param, Tape, Tensor

_BOOLEAN = 1
_INT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How many tokens go where.

    Attributes:
        tokens: of this rank.
        experts: of the layer, on all ranks.
        chosen: experts a token is sent to.
        groups: ranks that divide the experts.
        gathered: ranks whose tokens are gathered, those that divide one expert included.
    """

    tokens: int
    experts: int
    chosen: int
    groups: int = 1
    gathered: int = 1

    @property
    def all_tokens(self) -> int:
        """Tokens of all ranks that are gathered."""
        return self.tokens * self.gathered

    @property
    def own_experts(self) -> int:
        """Experts on this rank."""
        return self.experts // self.groups

    @property
    def own_tokens(self) -> int:
        """Rows that this rank's experts get."""
        return self.all_tokens * self.chosen // self.groups


def gate(t: Tape, x: Tensor, weight: Param) -> Tensor:
    """``RouterGatingLinearFunction``: keeps its input; logits in the router's dtype, x's."""
    experts, width = weight.shape
    tokens, itemsize, numel = x.numel // width, x.itemsize, x.numel
    out = t.new(tokens * experts, itemsize)
    if t.work is not None:
        t.work.product((tokens, width, experts), itemsize)
    kept = x.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel, itemsize)
        if t.work is not None:
            t.work.product((tokens, experts, width), itemsize)
        made = t.new(weight.numel, weight.itemsize, "gradients") if weight.trainable else None
        return dx, made

    return t.record(out, (x.node, weight if weight.trainable else None), backward, packs=True)


def choose(t: Tape, logits: Tensor, s: Routing) -> tuple[Tensor, Tensor]:
    """``topk_routing_with_score_function``: a probability for every token and expert, and a map.

    Both are [tokens, experts], the probabilities mostly zero.
    The best logits are chosen first and their softmax is taken in fp32 after.
    """
    values, index = topk(t, logits, s.tokens * s.chosen)
    chosen = cast(t, softmax(t, values, FP32_BYTES, half_to_float=False), logits.itemsize)
    del values
    probabilities = _scatter(t, chosen, index, logits.numel)
    mask = t.new(logits.numel, _INT32_BYTES)
    scattered = t.new(logits.numel, _INT32_BYTES)
    del mask
    routing_map = t.new(logits.numel, _BOOLEAN)
    del scattered
    return probabilities, routing_map


def _scatter(t: Tape, x: Tensor, index: Tensor, numel: int) -> Tensor:
    """``zeros.scatter(1, index, x)``: keeps the index; back, x's part is gathered."""
    zeros, kept = t.new(numel, x.itemsize), index.storage
    out = t.new(numel, x.itemsize)
    del zeros
    size, itemsize = x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(size, itemsize),)

    return t.record(out, (x.node,), backward)


def gather(t: Tape, x: Tensor, s: Routing) -> Tensor:
    """All ranks' probabilities; their gradient is summed and scattered."""
    if s.gathered == 1:
        return x
    numel, itemsize = x.numel, x.itemsize
    out = t.new(numel * s.gathered, itemsize)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def permute(t: Tape, x: Tensor, routing_map: Tensor, s: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of this rank's experts, the places they came from, and the map of those experts.

    The gathered tokens lie in a buffer that stays (``GlobalMemoryBuffer``); an argsort of the map
    of this rank's experts finds the rows, which ``index_select`` copies. Back, they are added into
    zeros for all tokens, which are summed over the ranks.
    """
    cells = s.own_experts * s.all_tokens
    everyone = t.new(routing_map.numel * s.gathered, _BOOLEAN) if s.gathered > 1 else routing_map
    own = t.new(cells, _BOOLEAN)
    turned, order = t.new(cells, _BOOLEAN), t.new(cells, INDEX_BYTES)
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


def own_probabilities(t: Tape, x: Tensor, own: Tensor, s: Routing) -> Tensor:
    """One probability for each row: the columns of this rank's experts, turned, masked.

    ``masked_select`` keeps what it selects from, and the mask.
    """
    cells = s.own_experts * s.all_tokens
    columns = t.new(cells, x.itemsize)
    turned, mask = t.new(cells, x.itemsize), t.new(cells, _BOOLEAN)
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


def grouped_linear(t: Tape, x: Tensor, weight: Param) -> Tensor:
    """Transformer Engine's ``GroupedLinear``: keeps its input; back, that of x before the weights'.

    The weight is [experts, outputs, inputs].
    """
    experts, outputs, inputs = weight.shape
    rows, numel, itemsize = x.numel // inputs, x.numel, x.itemsize
    out = t.new(rows * outputs, itemsize)
    if t.work is not None:
        t.work.product((rows // experts, inputs, outputs), itemsize, batch=experts)
    kept = x.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel, itemsize)
        if t.work is not None:
            t.work.product((rows // experts, outputs, inputs), itemsize, batch=experts)
        if not weight.trainable:
            return dx, None
        made = t.new(weight.numel, weight.itemsize, "gradients")
        if t.work is not None:
            t.work.product((outputs, rows // experts, inputs), itemsize, batch=experts)
        return dx, made

    return t.record(out, (x.node, weight if weight.trainable else None), backward, packs=True)


def weighted_swiglu(t: Tape, x: Tensor, probabilities: Tensor) -> Tensor:
    """``weighted_bias_swiglu_impl``: gate, product and probability in one kernel; keeps both.

    ``megatron/core/fusions/fused_bias_swiglu.py`` ``WeightedSwiGLUFunction``.
    """
    kept = (x.storage, probabilities.storage)
    wide, itemsize, rows = x.numel, x.itemsize, probabilities.numel

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return t.new(wide, itemsize), t.new(rows, itemsize)

    return t.record(t.new(wide // 2, itemsize), (x.node, probabilities.node), backward)


def unpermute(t: Tape, x: Tensor, index: Tensor, s: Routing) -> Tensor:
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
