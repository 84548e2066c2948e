"""Operators of Megatron-LM's experts: routing, and products for all of a rank's experts at once.

Megatron-LM @ d98e8a64 ``megatron/core/transformer/moe`` (``router.py``, ``moe_utils.py``,
``experts.py``). Experts are taken as evenly loaded; losses that balance them are off, as by
default.
"""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.ops.experts import topk
from vram_plan.estimator.tape import Param, Tape, Tensor

BOOLEAN = 1
_INT32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """What reaches a rank's experts.

    Attributes:
        rows: [own tokens, hidden], sorted by expert.
        weights: a probability for each row.
        index: where a row goes back to.
        held: what variables of ``MoELayer.forward`` hold until it returns.
    """

    rows: Tensor
    weights: Tensor
    index: Tensor
    held: tuple[Tensor, ...] = ()


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


def sent(t: Tape, x: Tensor, numel: int) -> Tensor:
    """What a collective makes of x for this rank; of its gradient another makes as much as x."""
    before, itemsize = x.numel, x.itemsize
    return t.record(t.new(numel, itemsize), (x.node,), lambda grad: (t.new(before, itemsize),))


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
    routing_map = t.new(logits.numel, BOOLEAN)
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
