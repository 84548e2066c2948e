"""DeepSeek's routers: fp32 logits, V2's plain softmax and V3's choice of groups of experts."""

from __future__ import annotations

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, scale, shift
from vram_plan.estimator.ops.experts import INDEX_BYTES, divide_in_place, pick, sum_last, topk
from vram_plan.estimator.ops.linear import AutocastWeight, linear
from vram_plan.estimator.tape import Param, Tape, Tensor

_GROUPS = 8
_BEST_OF_GROUP = 2
"""``n_group`` of DeepSeek-V3; a group is judged by its two best experts."""


def wide_logits(f: Forward, name: str, x: Tensor) -> Tensor:
    """``F.linear(x.type(float32), weight.type(float32))``; autocast undoes both casts."""
    experts = f.spec.num_experts
    weight = f.param(f"{name}.weight", (experts, f.spec.hidden_size), "router")
    weight = f.how.method.weight(f, weight.name, weight)
    if f.how.autocast:
        return f.product(x, weight, None, experts)
    x = cast(f.t, x, FP32_BYTES)
    return linear(f.t, x, _wide(f.t, weight), None, experts, keeps=f.how.keeps_inputs)


def _wide(t: Tape, weight: Param) -> Param:
    """``weight.type(float32)``: a copy unless it is that already."""
    if weight.itemsize == FP32_BYTES:
        return weight
    if isinstance(weight, AutocastWeight):  # a method computed it
        return AutocastWeight(weight, cast(t, weight.copy, FP32_BYTES), t)
    return AutocastWeight(weight, t.new(weight.numel, FP32_BYTES), t)


def greedy_router(f: Forward, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``DeepseekV2TopkRouter.forward`` with ``topk_method`` greedy (the class's default)."""
    logits = wide_logits(f, name, x)
    scores = softmax(f.t, logits, FP32_BYTES, half_to_float=f.how.half)
    weights, index = topk(f.t, scores, f.tokens * f.spec.num_experts_per_tok)
    del scores
    return logits, scale(f.t, weights), index


def grouped_router(f: Forward, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``DeepseekV3TopkRouter.forward``: sigmoid scores, the best groups, the best experts of them.

    The choice carries no gradient; what it makes lives as long as the function's variables.
    """
    t = f.t
    logits = wide_logits(f, name, x)
    scores = activation(t, logits, "sigmoid")
    index, choice = _choose(f, scores)
    weights = pick(t, scores, index)
    # The published model sets ``norm_topk_prob``.
    total = sum_last(t, weights, f.spec.num_experts_per_tok, wide=f.how.autocast)
    total = shift(t, total)
    weights = scale(t, divide_in_place(t, weights, total))
    del choice, scores, total
    return logits, weights, index


def _choose(f: Forward, scores: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The chosen experts' numbers, and the variables that stay."""
    t, tokens, pairs = f.t, f.tokens, scores.numel
    groups = min(_GROUPS, f.spec.num_experts)
    biased = t.new(pairs, FP32_BYTES)
    best = t.new(tokens * groups * _BEST_OF_GROUP, FP32_BYTES)
    best_index = t.new(best.numel, INDEX_BYTES)
    group_scores = t.new(tokens * groups, FP32_BYTES)
    del best
    group_index = t.new(tokens * groups // 2, INDEX_BYTES)
    group_mask = t.new(tokens * groups, FP32_BYTES)
    mask = t.new(pairs, FP32_BYTES)
    excluded = t.new(pairs, 1)
    biased = t.new(pairs, FP32_BYTES)
    values = t.new(tokens * f.spec.num_experts_per_tok, FP32_BYTES)
    index = t.new(values.numel, INDEX_BYTES)
    return index, (best_index, group_scores, group_index, group_mask, mask, excluded, biased)
