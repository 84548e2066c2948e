"""DeepSeek-V2 and V3: latent attention, leading dense blocks, routed and shared experts."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.deepseek_routers import greedy_router, grouped_router
from vram_plan.estimator.blocks.experts import gated_mlp, grouped_experts, mixed_decoder
from vram_plan.estimator.blocks.latent import complex_tables, latent_attention
from vram_plan.estimator.blocks.llama import rotary_tables
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def sparse_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``DeepseekV3DecoderLayer.forward`` with ``DeepseekV3MoE``; V2's is the same.

    transformers 5.23.0 ``models/deepseek_v3/modeling_deepseek_v3.py``.
    """
    x = attention_half(f, x, shared)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, f.spec.hidden_size)
    x = sparse_block(f, x)
    return f.add(residual, x)


def dense_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The same with ``DeepseekV3MLP``: the first ``first_k_dense_replace`` blocks."""
    x = attention_half(f, x, shared)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, f.spec.hidden_size)
    x = dense(f, x)
    return f.add(residual, x)


def attention_half(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """Norm, attention, residual."""
    residual = x
    x = f.rms_norm("input_layernorm", x, f.spec.hidden_size)
    x = latent_attention(f, x, shared)
    return f.add(residual, x)


def dense(f: Forward, x: Tensor) -> Tensor:
    """A dense feed-forward part."""
    return f.sublayer("mlp", gated_mlp(f, "mlp", x, f.spec.intermediate_size), x)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``DeepseekV3MoE.forward``: the shared experts are one wider gated MLP."""
    route = greedy_router if f.spec.model_type == "deepseek_v2" else grouped_router
    logits, weights, index = route(f, "mlp.gate", x)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    width = f.spec.shared_expert_intermediate_size
    out = f.add(out, gated_mlp(f, "mlp.shared_experts", x, width))
    del logits, weights, index
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``DeepseekV2ForCausalLM`` and ``DeepseekV3ForCausalLM``."""
    tables = complex_tables if spec.model_type == "deepseek_v2" else rotary_tables
    return mixed_decoder(spec, dense_layer, sparse_layer, shared=tables)
