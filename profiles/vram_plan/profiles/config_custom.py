"""Models whose code lives beside their weights and not in transformers.

Fields and defaults are those of the `configuration_*.py` published with each model:
THUDM/chatglm-6b, THUDM/chatglm2-6b, baichuan-inc/Baichuan-7B and -13B, Qwen/Qwen-7B,
internlm/internlm-7b and internlm/internlm2-7b on huggingface.co.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_decoders import decoder
from vram_plan.profiles.config_fields import Fields

__all__ = ["READERS"]

Values = dict[str, Any]


def chatglm(fields: Fields) -> Values:
    """ChatGLM 2 and 3, GLM-4-9B as first published; ChatGLM-6B shares the name alone."""
    if fields.has("inner_hidden_size", "position_encoding_2d"):
        return chatglm1(fields)
    heads = fields.size("num_attention_heads")
    grouped = fields.flag("multi_query_attention")
    bias = fields.flag("add_bias_linear")
    dropout = fields.share("hidden_dropout")
    return {
        "hidden_size": fields.size("hidden_size"),
        "num_hidden_layers": fields.size("num_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size("multi_query_group_num", default=1)
        if grouped
        else heads,
        "head_dim": fields.size("kv_channels", default=128),
        "intermediate_size": fields.size("ffn_hidden_size"),
        "vocab_size": fields.size("padded_vocab_size", "vocab_size"),
        "max_position_embeddings": fields.size("seq_length", default=2048),
        "attention_bias": bias or fields.flag("add_qkv_bias"),
        "attention_out_bias": bias,
        "mlp_bias": bias,
        "partial_rotary_factor": 0.5,
        "residual_from_layernorm": fields.flag("apply_residual_connection_post_layernorm"),
        "hidden_dropout": dropout,
        "attention_dropout": fields.share("attention_dropout"),
    }


def chatglm1(fields: Fields) -> Values:
    """ChatGLM-6B: LayerNorm, a plain feed-forward part, the residual taken behind the norm.

    The head is tied: the class names it in ``get_output_embeddings`` and its config leaves
    ``tie_word_embeddings`` at transformers 4's default.
    """
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    return {
        "model_type": "chatglm1",
        "hidden_size": hidden,
        "num_hidden_layers": fields.size("num_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": fields.divided(hidden, heads, "hidden_size by num_attention_heads"),
        "intermediate_size": fields.size("inner_hidden_size", default=4 * hidden),
        "hidden_act": "gelu_pytorch_tanh",
        "is_gated_act": False,
        "vocab_size": fields.size("vocab_size"),
        "max_position_embeddings": fields.size("max_sequence_length", default=2048),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "residual_from_layernorm": True,
    }


def baichuan(fields: Fields) -> Values:
    """Baichuan 1 and 2: the 7B rotates, the 13B (which names no table of positions) biases."""
    rotates = fields.has("max_position_embeddings")
    length = fields.size("max_position_embeddings", "model_max_length", default=4096)
    return decoder(fields) | {
        "position_embedding_type": "rope" if rotates else "alibi",
        "max_position_embeddings": length,
    }


def qwen(fields: Fields) -> Values:
    """Qwen 1: ``intermediate_size`` counts gate and value together."""
    heads = fields.size("num_attention_heads", "n_head")
    both = fields.size("intermediate_size", "ffn_hidden_size")
    bias = not fields.flag("no_bias", default=True)
    return {
        "hidden_size": fields.size("hidden_size", "n_embd"),
        "num_hidden_layers": fields.size("num_hidden_layers", "n_layer"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": fields.size("kv_channels", default=128),
        "intermediate_size": fields.divided(both, 2, "intermediate_size"),
        "vocab_size": fields.size("vocab_size"),
        "max_position_embeddings": fields.size("max_position_embeddings", default=8192),
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "attention_bias": True,
        "attention_out_bias": bias,
        "mlp_bias": bias,
        "partial_rotary_factor": fields.share("rotary_pct", default=1.0),
        "embedding_dropout": fields.share("emb_dropout_prob", "embd_pdrop"),
        "attention_dropout": fields.share("attn_dropout_prob", "attn_pdrop"),
    }


def internlm(fields: Fields) -> Values:
    """InternLM 1: Llama with biases around attention."""
    bias = fields.flag("bias", default=True)
    return decoder(fields) | {"attention_bias": bias, "attention_out_bias": bias}


def internlm2(fields: Fields) -> Values:
    """InternLM 2: Llama with one matrix for queries, keys and values."""
    bias = fields.flag("bias", default=True)
    return decoder(fields) | {"attention_bias": bias, "attention_out_bias": bias}


READERS = {
    "chatglm": chatglm,
    "baichuan": baichuan,
    "qwen": qwen,
    "internlm": internlm,
    "internlm2": internlm2,
}
