"""Mixtral: Llama's attention, every feed-forward part a set of experts."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.expert_modules import expert_modules
from vram_plan.estimator.blocks.experts import grouped_experts, prenorm_layer, softmax_router
from vram_plan.estimator.blocks.llama import decoder, self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.leaf import leaf
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``MixtralDecoderLayer.forward``, transformers 5.23.0 ``modeling_mixtral.py``."""
    return prenorm_layer(f, x, shared, self_attention, sparse_block)


@leaf
def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``MixtralSparseMoeBlock.forward``; the router's weights stay fp32."""
    if not f.how.stacked_experts:
        return expert_modules(f, x)
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=True, narrow=False)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``MixtralForCausalLM``; the load-balancing loss is off (``output_router_logits``)."""
    return decoder(spec, layer)
