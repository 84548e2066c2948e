"""Qwen1.5-MoE and Qwen2-MoE: a gated shared expert beside the routed ones, some blocks dense."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import (
    gated_mlp,
    grouped_experts,
    mixed_decoder,
    prenorm_layer,
    softmax_router,
)
from vram_plan.estimator.blocks.llama import self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.leaf import leaf
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def sparse_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Qwen2MoeDecoderLayer.forward``, transformers 5.23.0 ``modeling_qwen2_moe.py``."""
    return prenorm_layer(f, x, shared, self_attention, sparse_block)


def dense_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The same with ``Qwen2MoeMLP``."""
    return prenorm_layer(f, x, shared, self_attention, dense)


def dense(f: Forward, x: Tensor) -> Tensor:
    """A dense feed-forward part."""
    return f.sublayer("mlp", gated_mlp(f, "mlp", x, f.spec.intermediate_size), x)


@leaf
def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``Qwen2MoeSparseMoeBlock.forward``; published models leave ``norm_topk_prob`` off."""
    shared = gated_mlp(f, "mlp.shared_expert", x, f.spec.shared_expert_intermediate_size)
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=False, narrow=True)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    if f.spec.shared_expert_gate:
        gate = f.linear("mlp.shared_expert_gate", x, (f.spec.hidden_size, 1))
        gate = f.act(gate, "sigmoid")
        shared = f.mul(gate, shared)
        del gate
    out = f.add(out, shared)
    del logits, weights, index, shared
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``Qwen2MoeForCausalLM``; the load-balancing loss is off (``output_router_logits``)."""
    return mixed_decoder(spec, dense_layer, sparse_layer)
