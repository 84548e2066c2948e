"""OLMoE: norms over all query and over all key heads together, routed experts only."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import grouped_experts, prenorm_layer, softmax_router
from vram_plan.estimator.blocks.llama import attend, decoder, projected
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import clamp_in_place, relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``OlmoeDecoderLayer.forward``, transformers 5.23.0 ``models/olmoe/modeling_olmoe.py``."""
    return prenorm_layer(f, x, shared, self_attention, sparse_block)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``OlmoeAttention.forward``: norms on the flat projections, then perhaps ``clamp_``."""
    spec, ranks, entered = f.spec, f.how.tensor, x
    q = projected(f, "q_proj", x, spec.query_dim)
    q = f.rms_norm("self_attn.q_norm", q, spec.query_dim // ranks)
    k = projected(f, "k_proj", x, spec.kv_dim)
    k = f.rms_norm("self_attn.k_norm", k, spec.kv_dim // ranks)
    v = projected(f, "v_proj", x, spec.kv_dim)
    if spec.clip_qkv:
        q, k, v = clamp_in_place(f.t, q), clamp_in_place(f.t, k), clamp_in_place(f.t, v)
    q, k, v = relayout(f.t, q), relayout(f.t, k), relayout(f.t, v)
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    return attend(f, q, k, v, entered)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``OlmoeSparseMoeBlock.forward``; published models leave ``norm_topk_prob`` off."""
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=False, narrow=True)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``OlmoeForCausalLM``; the load-balancing loss is off (``output_router_logits``)."""
    return decoder(spec, layer)
