"""Qwen3-MoE: a norm on every query and key head, routed experts only."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import (
    grouped_experts,
    layer_segments,
    prenorm_layer,
    softmax_router,
)
from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.blocks.llama import head, rotary_tables
from vram_plan.estimator.blocks.qwen2_moe import dense
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def sparse_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Qwen3MoeDecoderLayer.forward``, transformers 5.23.0 ``modeling_qwen3_moe.py``."""
    cos, sin = shared["cos"], shared["sin"]
    return prenorm_layer(
        f, x, lambda x: self_attention(f, x, cos, sin), lambda x: sparse_block(f, x)
    )


def dense_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The same with ``Qwen3MoeMLP``."""
    cos, sin = shared["cos"], shared["sin"]
    return prenorm_layer(f, x, lambda x: self_attention(f, x, cos, sin), lambda x: dense(f, x))


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``Qwen3MoeAttention.forward``: norms of width ``head_dim`` before the rotary embedding."""
    spec, entered = f.spec, x
    hidden, bias = spec.hidden_size, spec.attention_bias
    q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), bias=bias, split="column")
    q = relayout(f.t, f.rms_norm("self_attn.q_norm", q, spec.head_dim))
    k = f.linear("self_attn.k_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    k = relayout(f.t, f.rms_norm("self_attn.k_norm", k, spec.head_dim))
    v = f.linear("self_attn.v_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out = f.attention(q, k, v)
    shape = (spec.query_dim, hidden)
    out = f.linear("self_attn.o_proj", out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``Qwen3MoeSparseMoeBlock.forward``; published models set ``norm_topk_prob``."""
    logits, weights, index = softmax_router(f, "mlp.gate", x, renormalise=True, narrow=True)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``Qwen3MoeForCausalLM``; the load-balancing loss is off by default."""
    return Composition(
        segments=(
            Segment(name="model.embed_tokens", kind="embedding", run=token_embedding),
            *layer_segments(spec, dense_layer, sparse_layer),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=rotary_tables,
    )
