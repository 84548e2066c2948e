"""Gemma 1, 2 and 3.

Names and defaults are those of `configuration_*.py` in transformers 5.23.0.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_decoders import (
    alternating,
    decoder,
    layer_types,
    require_even_heads,
    window,
)
from vram_plan.profiles.config_fields import Fields

__all__ = ["READERS"]

Values = dict[str, Any]


def gemma(fields: Fields) -> Values:
    """Gemma 1."""
    values = _common(fields, num_key_value_heads=16, max_position_embeddings=8192)
    act = fields.text("hidden_act", default="gelu_pytorch_tanh")
    # The first releases say "gelu" and mean the approximation; the class corrects them.
    return values | {"hidden_act": "gelu_pytorch_tanh" if act == "gelu" else act}


def gemma2(fields: Fields) -> Values:
    """Gemma 2: every other layer windowed, logits and scores capped."""
    require_even_heads(fields)
    values = _common(fields, num_key_value_heads=4, max_position_embeddings=8192)
    return (
        values
        | _windowed(fields, values["num_hidden_layers"], period=2)
        | {
            "attn_logit_softcapping": _capped(fields, "attn_logit_softcapping", 50.0),
            "final_logit_softcapping": _capped(fields, "final_logit_softcapping", 30.0),
        }
    )


def gemma3_text(fields: Fields) -> Values:
    """Gemma 3's language model; the published composites leave sizes at the class's defaults."""
    values = _common(
        fields,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=262208,
        max_position_embeddings=131072,
    )
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    fields.divided(hidden, heads, "hidden_size by num_attention_heads")
    period = fields.size("sliding_window_pattern", default=6)
    values |= _windowed(fields, values["num_hidden_layers"], period)
    if fields.flag("use_bidirectional_attention"):
        values["sliding_window"] = values["sliding_window"] // 2 + 1
    return values | {
        "qk_norm": "head",
        "attn_logit_softcapping": _capped(fields, "attn_logit_softcapping", 0.0),
        "final_logit_softcapping": _capped(fields, "final_logit_softcapping", 0.0),
    }


def gemma3(fields: Fields) -> Values:
    """The composite with images: its language model alone."""
    if fields.value("text_config") is None:
        raise fields.error("text_config", "is missing")
    tied = fields.flag("tie_word_embeddings", default=True)
    return gemma3_text(fields.part("text_config")) | {
        "model_type": "gemma3_text",
        "tie_word_embeddings": tied,
        "note": "language model only: the vision tower and its projector are left out",
    }


def _common(fields: Fields, **defaults: int) -> Values:
    bias = fields.flag("attention_bias")
    return decoder(fields, head_dim=256, **defaults) | {
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "attention_bias": bias,
        "attention_out_bias": bias,
        "scale_embedding": True,
    }


def _windowed(fields: Fields, layers: int, period: int) -> Values:
    return {
        "hidden_act": fields.text("hidden_activation", default="gelu_pytorch_tanh"),
        "sliding_window": window(fields, 4096),
        "layer_types": layer_types(fields, layers) or alternating(layers, period),
    }


def _capped(fields: Fields, field: str, default: float) -> bool:
    """Whether a cap is set: absent is the class's default, null switches it off."""
    return fields.number(field, default=0.0 if fields.has(field) else default) > 0


READERS = {"gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3_text, "gemma3": gemma3}
