"""OLMoE: norms over all query and over all key heads together, routed experts only."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import grouped_experts, prenorm_layer, softmax_router
from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.blocks.llama import head, rotary_tables
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.experts import clamp_in_place
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``OlmoeDecoderLayer.forward``, transformers 5.23.0 ``models/olmoe/modeling_olmoe.py``."""
    cos, sin = shared["cos"], shared["sin"]
    return prenorm_layer(
        f, x, lambda x: self_attention(f, x, cos, sin), lambda x: sparse_block(f, x)
    )


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``OlmoeAttention.forward``: norms on the flat projections, then perhaps ``clamp_``."""
    spec, entered = f.spec, x
    hidden, bias = spec.hidden_size, spec.attention_bias
    q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), bias=bias, split="column")
    q = f.rms_norm("self_attn.q_norm", q, spec.query_dim)
    k = f.linear("self_attn.k_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    k = f.rms_norm("self_attn.k_norm", k, spec.kv_dim)
    v = f.linear("self_attn.v_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    if spec.clip_qkv:
        q, k, v = clamp_in_place(f.t, q), clamp_in_place(f.t, k), clamp_in_place(f.t, v)
    q, k = relayout(f.t, q), relayout(f.t, k)
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out = f.attention(q, k, v)
    shape = (spec.query_dim, hidden)
    out = f.linear("self_attn.o_proj", out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``OlmoeSparseMoeBlock.forward``; published models leave ``norm_topk_prob`` off."""
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=False, narrow=True)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``OlmoeForCausalLM``; the load-balancing loss is off by default."""
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
