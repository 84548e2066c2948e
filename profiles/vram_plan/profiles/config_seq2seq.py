"""Encoder-decoders: T5 and BART with their kin.

Names and defaults are those of `configuration_*.py` in transformers 5.23.0.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_fields import Fields

__all__ = ["READERS"]

Values = dict[str, Any]


def t5(fields: Fields) -> Values:
    """T5 1.0, 1.1 and Flan-T5: distances as a bias on the scores, heads of any width.

    The class of transformers 5.23.0 sets ``tie_word_embeddings`` whatever the config says, and
    unties again when it loads a checkpoint that holds two different matrices. So the config's
    value is what a loaded model has (T5 1.1, Flan-T5 and mT5 say false), and it is kept here.
    """
    return _t5(fields, "relu", tied=fields.flag("tie_word_embeddings", default=True))


def mt5(fields: Fields) -> Values:
    """The mT5 and umT5 models: a gated feed-forward part unless the config says otherwise."""
    return _t5(fields, "gated-gelu", tied=fields.flag("tie_word_embeddings", default=True))


def _t5(fields: Fields, projection: str, *, tied: bool) -> Values:
    heads = fields.size("num_heads", "num_attention_heads")
    layers = fields.size("num_layers", "num_hidden_layers")
    act, gated = _projection(fields, projection)
    dropout = fields.share("dropout_rate", default=0.1)
    width = fields.size("d_ff")
    return {
        "is_encoder_decoder": True,
        "is_causal": False,
        "hidden_size": fields.size("d_model", "hidden_size"),
        "num_hidden_layers": layers,
        "num_decoder_layers": fields.size("num_decoder_layers", default=layers),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "decoder_attention_heads": heads,
        "head_dim": fields.size("d_kv", "head_dim", default=64),
        "intermediate_size": width,
        "decoder_intermediate_size": width,
        "hidden_act": act,
        "is_gated_act": gated,
        "vocab_size": fields.size("vocab_size"),
        "tie_word_embeddings": tied,
        "position_embedding_type": "relative",
        "relative_attention_num_buckets": fields.size("relative_attention_num_buckets", default=32),
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": dropout,
        "activation_dropout": dropout,
    }


def _projection(fields: Fields, default: str) -> tuple[str, bool]:
    """``relu``, ``gated-silu`` or ``gated-gelu``, which means ``gelu_new``."""
    text = fields.text("feed_forward_proj", default=default)
    gate, _, act = text.rpartition("-")
    if not act or gate not in ("", "gated"):
        raise fields.error("feed_forward_proj", f"must be ACT or gated-ACT, got {text!r}")
    return ("gelu_new" if text == "gated-gelu" else act), bool(gate)


def bart(fields: Fields) -> Values:
    """BART: post-norm; its position tables have two more rows than positions."""
    values = _bart(fields)
    length = values["max_position_embeddings"]
    return values | {"position_embedding_rows": length + 2, "do_layer_norm_before": False}


def mbart(fields: Fields) -> Values:
    """The mBART models: BART with the norms in front."""
    return bart(fields) | {"do_layer_norm_before": True}


def marian(fields: Fields) -> Values:
    """Marian (the Transformer of 2017): fixed positions, post-norm, perhaps two vocabularies."""
    values = _bart(fields)
    shared = fields.flag("share_encoder_decoder_embeddings", default=True)
    vocabulary = fields.whole("decoder_vocab_size", default=0) or values["vocab_size"]
    return values | {
        "decoder_vocab_size": 0 if shared else vocabulary,
        "position_embedding_type": "sinusoidal",
        "position_embedding_rows": values["max_position_embeddings"],
        "do_layer_norm_before": False,
    }


def pegasus(fields: Fields) -> Values:
    """Pegasus: fixed positions, norms in front."""
    values = _bart(fields)
    return values | {
        "position_embedding_type": "sinusoidal",
        "position_embedding_rows": values["max_position_embeddings"],
    }


def _bart(fields: Fields) -> Values:
    width = fields.size("d_model", "hidden_size")
    heads = fields.size("encoder_attention_heads", "num_attention_heads")
    decoder_heads = fields.size("decoder_attention_heads")
    fields.divided(width, decoder_heads, "d_model by decoder_attention_heads")
    dropout = fields.share("dropout", default=0.1)
    return {
        "is_encoder_decoder": True,
        "is_causal": False,
        "hidden_size": width,
        "num_hidden_layers": fields.size("encoder_layers", "num_hidden_layers"),
        "num_decoder_layers": fields.size("decoder_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "decoder_attention_heads": decoder_heads,
        "head_dim": fields.divided(width, heads, "d_model by encoder_attention_heads"),
        "intermediate_size": fields.size("encoder_ffn_dim"),
        "decoder_intermediate_size": fields.size("decoder_ffn_dim"),
        "hidden_act": fields.text("activation_function", default="gelu"),
        "is_gated_act": False,
        "vocab_size": fields.size("vocab_size"),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "scale_embedding": True,
        "max_position_embeddings": fields.size("max_position_embeddings", default=1024),
        "position_embedding_type": "learned",
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": fields.share("attention_dropout"),
        "activation_dropout": fields.share("activation_dropout"),
    }


READERS = {
    "t5": t5,
    "mt5": mt5,
    "umt5": mt5,
    "bart": bart,
    "mbart": mbart,
    "marian": marian,
    "pegasus": pegasus,
}
