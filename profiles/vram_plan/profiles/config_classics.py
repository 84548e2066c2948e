"""Decoders of 2019 to 2023: GPT-2 and its kin, OPT, BLOOM, Falcon, MPT.

Names and defaults are those of `configuration_*.py` in transformers 5.23.0; what a class builds
without asking its config (biases, MPT's feed-forward width) is taken from `modeling_*.py`.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_decoders import require_even_heads, rotary_factor
from vram_plan.profiles.config_fields import Fields

__all__ = ["READERS"]

Values = dict[str, Any]
_BIASES = {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}


def _sizes(fields: Fields, hidden: tuple[str, ...], layers: str, heads: str) -> Values:
    """Width, depth and heads under the class's own names; the heads must divide the width."""
    width = fields.size(*hidden)
    count = fields.size(heads, "num_attention_heads")
    return {
        "hidden_size": width,
        "num_hidden_layers": fields.size(layers, "num_hidden_layers"),
        "num_attention_heads": count,
        "num_key_value_heads": count,
        "head_dim": fields.divided(width, count, f"{hidden[0]} by {heads}"),
        "vocab_size": fields.size("vocab_size"),
        "is_gated_act": False,
    }


def _gpt(fields: Fields, *, length: int) -> Values:
    """GPT-2's names: ``n_embd``, ``n_layer``, ``n_head``, ``n_inner``, ``n_positions``."""
    values = _sizes(fields, ("n_embd", "hidden_size"), "n_layer", "n_head")
    return values | {
        "intermediate_size": fields.size("n_inner", default=4 * values["hidden_size"]),
        "max_position_embeddings": fields.size(
            "n_positions", "max_position_embeddings", default=length
        ),
    }


def gpt2(fields: Fields) -> Values:
    """GPT-2."""
    return _gpt2_like(fields, "gelu_new")


def gpt_bigcode(fields: Fields) -> Values:
    """SantaCoder and StarCoder: GPT-2 with one key and value head."""
    values = _gpt2_like(fields, "gelu_pytorch_tanh")
    if fields.flag("multi_query", default=True):
        values["num_key_value_heads"] = 1
    return values


def _gpt2_like(fields: Fields, act: str) -> Values:
    values = _gpt(fields, length=1024)
    return (
        values
        | _BIASES
        | {
            "hidden_act": fields.text("activation_function", default=act),
            "position_embedding_type": "learned",
            "position_embedding_rows": values["max_position_embeddings"],
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
            "hidden_dropout": fields.share("resid_pdrop", default=0.1),
            "embedding_dropout": fields.share("embd_pdrop", default=0.1),
            "attention_dropout": fields.share("attn_pdrop", default=0.1),
        }
    )


def gptj(fields: Fields) -> Values:
    """GPT-J and CodeGen: side by side behind one norm, a head with a bias."""
    values = _gpt(fields, length=2048)
    default = 0 if fields.has("rotary_dim") else 64
    rotary = fields.whole("rotary_dim", default=default) or values["head_dim"]
    return values | {
        "hidden_act": fields.text("activation_function", default="gelu_new"),
        "mlp_bias": True,
        "lm_head_bias": True,
        "use_parallel_residual": True,
        "num_ln_in_parallel_attn": 1,
        "partial_rotary_factor": min(1.0, rotary / values["head_dim"]),
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "hidden_dropout": fields.share("resid_pdrop"),
        "embedding_dropout": fields.share("embd_pdrop"),
        "attention_dropout": fields.share("attn_pdrop"),
    }


def gpt_neo(fields: Fields) -> Values:
    """GPT-Neo: local layers between global ones."""
    values = _sizes(fields, ("hidden_size",), "num_layers", "num_heads")
    length = fields.size("max_position_embeddings", default=2048)
    return (
        values
        | _BIASES
        | {
            "attention_bias": False,
            "intermediate_size": fields.size(
                "intermediate_size", default=4 * values["hidden_size"]
            ),
            "hidden_act": fields.text("activation_function", default="gelu_new"),
            "max_position_embeddings": length,
            "position_embedding_type": "learned",
            "position_embedding_rows": length,
            "sliding_window": fields.whole("window_size", default=256),
            "layer_types": _neo_layers(fields, values["num_hidden_layers"]),
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
            "hidden_dropout": fields.share("resid_dropout"),
            "embedding_dropout": fields.share("embed_dropout"),
            "attention_dropout": fields.share("attention_dropout"),
        }
    )


def _neo_layers(fields: Fields, layers: int) -> tuple[str, ...]:
    """``[[["global", "local"], 12]]``: kinds and how often they repeat."""
    groups = fields.value("attention_types") or [[["global", "local"], 12]]
    names = {"global": "full_attention", "local": "sliding_attention"}
    kinds: list[str] = []
    try:
        for cycle, times in groups:  # type: ignore[attr-defined]  # JSON of any shape
            kinds += [names[kind] for kind in cycle] * min(int(times), 4096)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise fields.error(
            "attention_types", "must look like [[['global', 'local'], 12]]"
        ) from None
    if len(kinds) != layers:
        raise fields.error(
            "attention_types", f"names {len(kinds)} layers, num_layers says {layers}"
        )
    return tuple(kinds)


def gpt_neox(fields: Fields) -> Values:
    """GPT-NeoX and Pythia: side by side behind two norms."""
    require_even_heads(fields)
    values = _sizes(fields, ("hidden_size",), "num_hidden_layers", "num_attention_heads")
    bias = fields.flag("attention_bias", default=True)
    parallel = fields.flag("use_parallel_residual", default=True)
    dropout = fields.share("hidden_dropout")
    return values | {
        "intermediate_size": fields.size("intermediate_size"),
        "hidden_act": fields.text("hidden_act", default="gelu"),
        "max_position_embeddings": fields.size("max_position_embeddings", default=2048),
        "attention_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": True,
        "use_parallel_residual": parallel,
        "num_ln_in_parallel_attn": 2 * parallel,
        "partial_rotary_factor": rotary_factor(fields, fields.share("rotary_pct", default=0.25)),
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": fields.share("attention_dropout"),
    }


def opt(fields: Fields) -> Values:
    """OPT; its position table has two more rows than positions."""
    values = _sizes(fields, ("hidden_size",), "num_hidden_layers", "num_attention_heads")
    length = fields.size("max_position_embeddings", default=2048)
    bias = fields.flag("enable_bias", default=True)
    embedding = fields.size("word_embed_proj_dim", default=values["hidden_size"])
    return values | {
        "intermediate_size": fields.size("ffn_dim"),
        "hidden_act": fields.text("activation_function", default="relu"),
        "max_position_embeddings": length,
        "position_embedding_type": "learned",
        "position_embedding_rows": length + 2,
        "embedding_size": 0 if embedding == values["hidden_size"] else embedding,
        "attention_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": bias,
        "norm_affine": fields.flag("layer_norm_elementwise_affine", default=True),
        "do_layer_norm_before": fields.flag("do_layer_norm_before", default=True),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "hidden_dropout": fields.share("dropout", default=0.1),
        "attention_dropout": fields.share("attention_dropout"),
    }


def bloom(fields: Fields) -> Values:
    """BLOOM: distances as a bias on the scores, a norm behind the embedding."""
    values = _sizes(fields, ("n_embed", "hidden_size"), "n_layer", "n_head")
    return (
        values
        | _BIASES
        | {
            "intermediate_size": 4 * values["hidden_size"],
            "hidden_act": "gelu_pytorch_tanh",  # BloomGelu, the tanh approximation
            "position_embedding_type": "alibi",
            "residual_from_layernorm": fields.flag("apply_residual_connection_post_layernorm"),
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
            "hidden_dropout": fields.share("hidden_dropout"),
            "attention_dropout": fields.share("attention_dropout"),
        }
    )


def falcon(fields: Fields) -> Values:
    """Falcon: 7B with one key and value head, 40B and 180B with groups and two norms."""
    values = _sizes(fields, ("n_embed", "hidden_size"), "num_hidden_layers", "num_attention_heads")
    bias = fields.flag("bias")
    return (
        values
        | _falcon_block(fields, values["num_attention_heads"])
        | {
            "intermediate_size": fields.size("ffn_hidden_size", default=4 * values["hidden_size"]),
            "hidden_act": fields.text("activation", default="gelu"),
            "max_position_embeddings": fields.size("max_position_embeddings", default=2048),
            "position_embedding_type": "alibi" if fields.flag("alibi") else "rope",
            "attention_bias": bias,
            "attention_out_bias": bias,
            "mlp_bias": bias,
            "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
            "hidden_dropout": fields.share("hidden_dropout"),
            "attention_dropout": fields.share("attention_dropout"),
        }
    )


def _falcon_block(fields: Fields, heads: int) -> Values:
    new = fields.flag("new_decoder_architecture")
    single = fields.flag("multi_query", default=True) and not new
    parallel = fields.flag("parallel_attn", default=True)
    norms = fields.whole("num_ln_in_parallel_attn", default=2 if new else 1)
    return {
        "num_key_value_heads": 1 if single else fields.size("num_kv_heads", default=heads),
        "new_decoder_architecture": new,
        "use_parallel_residual": parallel,
        # The class knows two separate norms or one shared; any other number is one.
        "num_ln_in_parallel_attn": (2 if norms == 2 else 1) if parallel else 0,
    }


def mpt(fields: Fields) -> Values:
    """MPT; the class ignores ``expansion_ratio``, ``no_bias`` and its own dropouts."""
    values = _sizes(fields, ("d_model", "hidden_size"), "n_layers", "n_heads")
    attention = fields.part("attn_config")
    dropout = attention.share("attn_pdrop")
    return values | {
        "intermediate_size": 4 * values["hidden_size"],
        "hidden_act": "gelu",
        "max_position_embeddings": fields.size("max_seq_len", default=2048),
        "position_embedding_type": "alibi",
        "clip_qkv": attention.number("clip_qkv", default=0.0) > 0,
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "hidden_dropout": dropout,
        "attention_dropout": dropout,
    }


READERS = {
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gptj": gptj,
    "codegen": gptj,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "bloom": bloom,
    "falcon": falcon,
    "mpt": mpt,
}
