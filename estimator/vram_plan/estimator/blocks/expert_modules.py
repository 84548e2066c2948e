"""Experts as a list of modules, one after another: transformers until 4.57.

``MixtralSparseMoeBlock.forward`` of transformers 4.48.1 ``models/mixtral/modeling_mixtral.py``:
every expert is three linear layers, which are quantized and adapted like any other. Assumed is
balanced routing: each expert gets its share of the tokens.
"""

from __future__ import annotations

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.ops.experts import (
    INDEX_BYTES,
    add_rows,
    divide_in_place,
    gather_rows,
    sum_last,
    topk,
)
from vram_plan.estimator.tape import Tensor


def expert_modules(f: Forward, x: Tensor) -> Tensor:
    """Router, choice, and each expert on its rows; results are added to a tensor of zeros."""
    t, spec = f.t, f.spec
    chosen, experts = spec.num_experts_per_tok, spec.num_experts
    logits = f.linear("mlp.gate", x, (spec.hidden_size, experts))
    weights, index = topk(
        t, softmax(t, logits, FP32_BYTES, half_to_float=f.how.half), f.tokens * chosen
    )
    total = sum_last(t, weights, chosen, wide=f.how.autocast)
    weights = cast(t, divide_in_place(t, weights, total), x.itemsize)
    out = t.new(x.numel, x.itemsize)
    mask = t.new(f.tokens * chosen * experts, INDEX_BYTES)
    for expert in range(experts):
        out = _expert(f, f"mlp.experts.{expert}", (x, weights), out)
    del mask, index, total
    return f.sublayer("mlp", out, x)


def _expert(f: Forward, name: str, given: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
    """``index_add_(0, rows, expert(x[rows]) * weights[rows])`` of one expert."""
    (x, weights), t, spec = given, f.t, f.spec
    rows = -(-f.tokens * spec.num_experts_per_tok // spec.num_experts)
    place, token = t.new(rows, INDEX_BYTES), t.new(rows, INDEX_BYTES)
    state = gather_rows(t, x, token, rows * spec.hidden_size)
    shape = (spec.hidden_size, spec.moe_intermediate_size)
    gate = f.act(f.linear(f"{name}.gate_proj", state, shape))
    inner = f.mul(gate, f.linear(f"{name}.up_proj", state, shape))
    made = f.linear(f"{name}.down_proj", inner, shape[::-1])
    made = f.mul(made, gather_rows(t, weights, token, rows))
    del place
    return add_rows(t, out, cast(t, made, x.itemsize), token)
