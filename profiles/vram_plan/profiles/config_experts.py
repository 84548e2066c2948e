"""Decoders with experts, from Mixtral to DeepSeek-V3.

Names and defaults are those of `configuration_*.py` in transformers 5.23.0.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_decoders import (
    alternating,
    decoder,
    layer_types,
    qwen_windows,
    require_even_heads,
    window,
)
from vram_plan.profiles.config_fields import Fields

__all__ = ["READERS"]

Values = dict[str, Any]


def mixtral(fields: Fields) -> Values:
    """Mixtral 8x7B, 8x22B: ``intermediate_size`` is that of one expert."""
    values = decoder(fields, num_key_value_heads=8, max_position_embeddings=131072)
    return values | _local_experts(fields, values, 8, 2) | {"sliding_window": window(fields)}


def phimoe(fields: Fields) -> Values:
    """Phi-3.5-MoE."""
    values = decoder(fields, num_key_value_heads=8, max_position_embeddings=131072)
    bias = fields.flag("attention_bias")
    return (
        values
        | _local_experts(fields, values, 16, 2)
        | {
            "attention_bias": bias,
            "attention_out_bias": bias,
            "lm_head_bias": fields.flag("lm_head_bias"),
            "sliding_window": window(fields),
        }
    )


def granitemoe(fields: Fields) -> Values:
    """Granite 3 with experts."""
    values = decoder(fields)
    bias = fields.flag("attention_bias")
    return (
        values
        | _local_experts(fields, values, 8, 2)
        | {
            "attention_bias": bias,
            "attention_out_bias": bias,
            "scale_embedding": True,
        }
    )


def gpt_oss(fields: Fields) -> Values:
    """gpt-oss: experts and router with biases, every other layer windowed."""
    values = decoder(fields, head_dim=64, num_key_value_heads=8, max_position_embeddings=131072)
    layers = values["num_hidden_layers"]
    bias = fields.flag("attention_bias", default=True)
    return (
        values
        | _local_experts(fields, values, 128, 4)
        | {
            "attention_bias": bias,
            "attention_out_bias": bias,
            "mlp_bias": True,
            "router_bias": True,
            "sliding_window": window(fields, 128),
            "layer_types": layer_types(fields, layers) or alternating(layers, 2),
        }
    )


def _local_experts(fields: Fields, values: Values, experts: int, chosen: int) -> Values:
    return {
        "num_experts": fields.size("num_local_experts", "num_experts", default=experts),
        "num_experts_per_tok": fields.size("num_experts_per_tok", default=chosen),
        "moe_intermediate_size": values["intermediate_size"],
    }


def qwen2_moe(fields: Fields) -> Values:
    """Qwen1.5-MoE, Qwen2-57B-A14B: a gated shared expert beside the routed ones."""
    values = decoder(fields, num_key_value_heads=16, max_position_embeddings=32768)
    shared = fields.size("shared_expert_intermediate_size", default=5632)
    return (
        values
        | _qwen_experts(fields, experts=60, chosen=4, width=1408)
        | {
            "attention_bias": fields.flag("qkv_bias", default=True),
            "shared_expert_intermediate_size": shared,
            "shared_expert_gate": True,
        }
        | _alternating_windows(fields, values["num_hidden_layers"])
    )


def _alternating_windows(fields: Fields, layers: int) -> Values:
    """Every other one of the first ``max_window_layers`` is windowed (unlike Qwen2's rule)."""
    if not fields.flag("use_sliding_window"):
        return qwen_windows(fields, layers)
    start = fields.whole("max_window_layers", default=28)
    kinds = tuple(
        kind if layer < start else "full_attention"
        for layer, kind in enumerate(alternating(layers, 2))
    )
    return {
        "sliding_window": window(fields, 4096),
        "layer_types": layer_types(fields, layers) or kinds,
    }


def qwen3_moe(fields: Fields) -> Values:
    """Qwen3-30B-A3B, 235B-A22B; a window, if any, holds for all layers."""
    values = decoder(fields, num_key_value_heads=4, max_position_embeddings=32768)
    bias = fields.flag("attention_bias")
    return (
        values
        | _qwen_experts(fields, experts=128, chosen=8, width=768)
        | {
            "qk_norm": "head",
            "attention_bias": bias,
            "attention_out_bias": bias,
            "sliding_window": window(fields, 4096) if fields.flag("use_sliding_window") else 0,
        }
    )


def _qwen_experts(fields: Fields, *, experts: int, chosen: int, width: int) -> Values:
    return {
        "num_experts": fields.size("num_experts", "num_local_experts", default=experts),
        "num_experts_per_tok": fields.size("num_experts_per_tok", default=chosen),
        "moe_intermediate_size": fields.size("moe_intermediate_size", default=width),
        "decoder_sparse_step": fields.size("decoder_sparse_step", default=1),
        "mlp_only_layers": fields.wholes("mlp_only_layers"),
    }


def olmoe(fields: Fields) -> Values:
    """OLMoE 1B-7B."""
    values = decoder(fields, max_position_embeddings=4096)
    bias = fields.flag("attention_bias")
    return values | {
        "attention_bias": bias,
        "attention_out_bias": bias,
        "qk_norm": "full",
        "clip_qkv": fields.number("clip_qkv", default=0.0) > 0,
        "num_experts": fields.size("num_experts", "num_local_experts", default=64),
        "num_experts_per_tok": fields.size("num_experts_per_tok", default=8),
        "moe_intermediate_size": values["intermediate_size"],
    }


def deepseek_v2(fields: Fields) -> Values:
    """DeepSeek-V2 and V2-Lite; the experts each token passes have no default."""
    require_even_heads(fields)
    return _latent(fields, max_position_embeddings=2048) | {
        "mlp_bias": fields.flag("mlp_bias"),
        "num_experts": fields.size("n_routed_experts", "num_experts", default=64),
        "num_experts_per_tok": fields.size("num_experts_per_tok"),
        "moe_intermediate_size": fields.size("moe_intermediate_size", default=1407),
        "shared_expert_intermediate_size": _shared(fields, 2, 1407),
        "first_k_dense_replace": fields.whole("first_k_dense_replace", default=0),
    }


def deepseek_v3(fields: Fields) -> Values:
    """DeepSeek-V3 and R1; the class leaves the multi-token head of the checkpoint out."""
    return _latent(fields, num_key_value_heads=128, max_position_embeddings=4096) | {
        "num_experts": fields.size("n_routed_experts", "num_local_experts", default=256),
        "num_experts_per_tok": fields.size("num_experts_per_tok", default=8),
        "moe_intermediate_size": fields.size("moe_intermediate_size", default=2048),
        "shared_expert_intermediate_size": _shared(fields, 1, 2048),
        "first_k_dense_replace": fields.whole("first_k_dense_replace", default=3),
    }


def _shared(fields: Fields, count: int, width: int) -> int:
    shared = fields.whole("n_shared_experts", default=count)
    return shared * fields.size("moe_intermediate_size", default=width)


def _latent(fields: Fields, **defaults: int) -> Values:
    """Latent attention: keys and values share one low-rank projection (arXiv:2405.04434)."""
    values = decoder(fields, **defaults)
    rope = fields.size("qk_rope_head_dim", default=64)
    bias = fields.flag("attention_bias")
    # Absent is the class's 1536; V2-Lite's null means that queries are projected directly.
    rank = 0 if fields.has("q_lora_rank") else 1536
    return values | {
        "head_dim": rope,
        "q_lora_rank": fields.whole("q_lora_rank", default=rank),
        "kv_lora_rank": fields.size("kv_lora_rank", default=512),
        "qk_nope_head_dim": fields.size("qk_nope_head_dim", default=128),
        "qk_rope_head_dim": rope,
        "v_head_dim": fields.size("v_head_dim", default=128),
        "attention_bias": bias,
        "attention_out_bias": bias,
    }


def dbrx(fields: Fields) -> Values:
    """DBRX: attention and experts in tables of their own; ``emb_pdrop`` is not used."""
    hidden = fields.size("d_model", "hidden_size")
    heads = fields.size("n_heads", "num_attention_heads")
    attention, experts = fields.part("attn_config"), fields.part("ffn_config")
    width = experts.size("ffn_hidden_size", default=3584)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": fields.size("n_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": attention.size("kv_n_heads", default=1),
        "head_dim": hidden // heads,
        "intermediate_size": width,
        "vocab_size": fields.size("vocab_size"),
        "max_position_embeddings": fields.size(
            "max_seq_len", "max_position_embeddings", default=2048
        ),
        "hidden_act": experts.part("ffn_act_fn").text("name", default="silu"),
        "clip_qkv": attention.number("clip_qkv", default=0.0) > 0,
        "num_experts": experts.size("moe_num_experts", default=4),
        "num_experts_per_tok": experts.size("moe_top_k", default=1),
        "moe_intermediate_size": width,
        "hidden_dropout": fields.share("resid_pdrop"),
        "attention_dropout": attention.share("attn_pdrop"),
    }


READERS = {
    "mixtral": mixtral,
    "phimoe": phimoe,
    "granitemoe": granitemoe,
    "gpt_oss": gpt_oss,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
    "olmoe": olmoe,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "dbrx": dbrx,
}
