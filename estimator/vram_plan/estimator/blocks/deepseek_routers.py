"""DeepSeek's routers: fp32 logits, V2's plain softmax and V3's choice of groups of experts."""

from __future__ import annotations

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, activation, cast, scale, shift
from vram_plan.estimator.ops.experts import divide_in_place, pick, sum_last, topk
from vram_plan.estimator.ops.linear import AutocastWeight, linear
from vram_plan.estimator.tape import Tensor

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
    if weight.itemsize != FP32_BYTES:
        weight = AutocastWeight(weight, f.t.new(weight.numel, FP32_BYTES), f.t)
    return linear(f.t, x, weight, None, experts)


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
    t, chosen = f.t, f.tokens * f.spec.num_experts_per_tok
    logits = wide_logits(f, name, x)
    scores = activation(t, logits, "sigmoid")
    index, choice = _choose(f, scores)
    weights = pick(t, scores, index)
    # The published model sets ``norm_topk_prob``.
    total = sum_last(t, weights, f.spec.num_experts_per_tok, wide=f.how.autocast)
    total = shift(t, total)
    weights = scale(t, divide_in_place(t, weights, total))
    assert weights.numel == chosen
    del choice, scores, total
    return logits, weights, index


def _choose(f: Forward, scores: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The chosen experts' numbers, and the variables that stay."""
    t, tokens, experts = f.t, f.tokens, f.spec.num_experts
    groups = min(_GROUPS, experts)
    biased = t.new(scores.numel, FP32_BYTES)
    best = t.new(tokens * groups * _BEST_OF_GROUP, FP32_BYTES)
    where = t.new(best.numel, 8)
    group_scores = t.new(tokens * groups, FP32_BYTES)
    del best
    group_index = t.new(tokens * groups // 2, 8)
    group_mask = t.new(tokens * groups, FP32_BYTES)
    mask = t.new(tokens * experts, FP32_BYTES)
    excluded = t.new(tokens * experts, 1)
    biased = t.new(tokens * experts, FP32_BYTES)
    values = t.new(tokens * f.spec.num_experts_per_tok, FP32_BYTES)
    index = t.new(values.numel, 8)
    return index, (where, group_scores, group_index, group_mask, mask, excluded, biased)
