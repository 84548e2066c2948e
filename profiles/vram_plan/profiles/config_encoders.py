"""Encoders: BERT and its kin.

Names and defaults are those of `configuration_*.py` in transformers 5.23.0.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_fields import Fields

__all__ = ["READERS"]

Values = dict[str, Any]
_BLOCK = {
    "is_causal": False,
    "is_gated_act": False,
    "do_layer_norm_before": False,
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "lm_head_bias": True,
    "position_embedding_type": "learned",
}


def bert(fields: Fields) -> Values:
    """BERT, RoBERTa and XLM-R (whose two spare positions are in their configs already)."""
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    length = fields.size("max_position_embeddings", default=512)
    dropout = fields.share("hidden_dropout_prob", default=0.1)
    return _BLOCK | {
        "hidden_size": width,
        "num_hidden_layers": fields.size("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": fields.divided(width, heads, "hidden_size by num_attention_heads"),
        "intermediate_size": fields.size("intermediate_size"),
        "hidden_act": fields.text("hidden_act", default="gelu"),
        "vocab_size": fields.size("vocab_size"),
        "max_position_embeddings": length,
        "position_embedding_rows": length,
        "type_vocab_size": fields.whole("type_vocab_size", default=2),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": fields.share("attention_probs_dropout_prob", default=0.1),
    }


def electra(fields: Fields) -> Values:
    """ELECTRA: a narrow embedding, projected up when it is narrower."""
    values = bert(fields)
    width = fields.size("embedding_size", default=128)
    return values | {"embedding_size": 0 if width == values["hidden_size"] else width}


def albert(fields: Fields) -> Values:
    """ALBERT: one set of weights for all blocks, a narrow embedding."""
    values = bert(fields)
    dropout = fields.share("hidden_dropout_prob")
    width = fields.size("embedding_size", default=128)
    return values | {
        "embedding_size": 0 if width == values["hidden_size"] else width,
        "num_hidden_groups": fields.size("num_hidden_groups", default=1),
        "inner_group_num": fields.size("inner_group_num", default=1),
        "hidden_act": fields.text("hidden_act", default="gelu_new"),
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": fields.share("attention_probs_dropout_prob"),
    }


def distilbert(fields: Fields) -> Values:
    """DistilBERT: no token types; the feed-forward part has no dropout of its own."""
    width = fields.size("dim", "hidden_size")
    heads = fields.size("n_heads", "num_attention_heads")
    length = fields.size("max_position_embeddings", default=512)
    dropout = fields.share("dropout", default=0.1)
    fixed = fields.flag("sinusoidal_pos_embds")
    return _BLOCK | {
        "hidden_size": width,
        "num_hidden_layers": fields.size("n_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": fields.divided(width, heads, "dim by n_heads"),
        "intermediate_size": fields.size("hidden_dim", default=3072),
        "hidden_act": fields.text("activation", default="gelu"),
        "vocab_size": fields.size("vocab_size"),
        "max_position_embeddings": length,
        "position_embedding_type": "sinusoidal" if fixed else "learned",
        "position_embedding_rows": length,
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "attention_dropout": fields.share("attention_dropout", default=0.1),
    }


def deberta_v2(fields: Fields) -> Values:
    """DeBERTa-v2 and v3: a table of relative distances shared by all blocks."""
    values = bert(fields)
    hidden, length = values["hidden_size"], values["max_position_embeddings"]
    embedding = fields.size("embedding_size", default=hidden)
    relative = fields.flag("relative_attention")
    return values | {
        "type_vocab_size": fields.whole("type_vocab_size", default=0),
        "embedding_size": 0 if embedding == hidden else embedding,
        "position_embedding_type": "relative" if relative else "learned",
        "position_embedding_rows": (
            length if fields.flag("position_biased_input", default=True) else 0
        ),
        "relative_attention_num_buckets": _distances(fields, length) if relative else 0,
        "pos_att_type": _relative_terms(fields) if relative else (),
        "share_att_key": relative and fields.flag("share_att_key"),
        "conv_kernel_size": fields.whole("conv_kernel_size", default=0),
    }


def _distances(fields: Fields, length: int) -> int:
    """Rows of ``rel_embeddings``: twice the buckets, or twice the longest distance."""
    for name in ("position_buckets", "max_relative_positions"):
        value = fields.number(name, default=-1)
        if value >= 1:
            return 2 * fields.size(name)
    return 2 * length


def _relative_terms(fields: Fields) -> tuple[str, ...]:
    """``"p2c|c2p"`` or a list of the same."""
    value = fields.value("pos_att_type")
    if isinstance(value, str):
        return tuple(term.strip() for term in value.lower().split("|") if term.strip())
    return fields.texts("pos_att_type")


READERS = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "electra": electra,
    "albert": albert,
    "distilbert": distilbert,
    "deberta-v2": deberta_v2,
}
