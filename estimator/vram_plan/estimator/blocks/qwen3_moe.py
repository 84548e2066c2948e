"""Qwen3-MoE: Qwen3's attention, routed experts only, some blocks dense."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import (
    grouped_experts,
    mixed_decoder,
    prenorm_layer,
    softmax_router,
)
from vram_plan.estimator.blocks.qwen2_moe import dense
from vram_plan.estimator.blocks.qwen3 import self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.leaf import leaf
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def sparse_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Qwen3MoeDecoderLayer.forward``, transformers 5.23.0 ``modeling_qwen3_moe.py``."""
    return prenorm_layer(f, x, shared, self_attention, sparse_block)


def dense_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The same with ``Qwen3MoeMLP``."""
    return prenorm_layer(f, x, shared, self_attention, dense)


@leaf
def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``Qwen3MoeSparseMoeBlock.forward``; published models set ``norm_topk_prob``."""
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=True, narrow=True)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``Qwen3MoeForCausalLM``; the load-balancing loss is off (``output_router_logits``)."""
    return mixed_decoder(spec, dense_layer, sparse_layer)
