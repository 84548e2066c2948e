"""Mixtral: Llama's attention, every feed-forward part a set of experts."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import grouped_experts, prenorm_layer, softmax_router
from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.blocks.llama import head, rotary_tables, self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``MixtralDecoderLayer.forward``, transformers 5.23.0 ``models/mixtral/modeling_mixtral.py``."""
    cos, sin = shared["cos"], shared["sin"]
    return prenorm_layer(
        f, x, lambda x: self_attention(f, x, cos, sin), lambda x: sparse_block(f, x)
    )


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``MixtralSparseMoeBlock.forward``; the router's weights stay fp32."""
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=True, narrow=False)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``MixtralForCausalLM``; the load-balancing loss is off by default (``output_router_logits``)."""
    return Composition(
        segments=(
            Segment(name="model.embed_tokens", kind="embedding", run=token_embedding),
            Segment(
                name="model.layers", kind="layer", run=layer, count=spec.num_hidden_layers, first=0
            ),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=rotary_tables,
    )
