"""Decoders with rotary embeddings and a single feed-forward part, from Llama to GLM-4.

Names and defaults are those of `configuration_*.py` in transformers 5.23.0; biases and norms that
a class builds without asking its config are taken from the `modeling_*.py` beside it.
"""

from __future__ import annotations

from typing import Any

from vram_plan.profiles.config_fields import Fields

__all__ = [
    "READERS",
    "alternating",
    "decoder",
    "layer_types",
    "qwen_windows",
    "require_even_heads",
    "rotary_factor",
    "window",
]

Values = dict[str, Any]
_LAYER_TYPES = ("full_attention", "sliding_attention")


def decoder(fields: Fields, **defaults: int) -> Values:
    """What all these classes read alike.

    Args:
        fields: The configuration.
        **defaults: The class's defaults by field. Without one, ``num_key_value_heads`` is the
            number of heads, ``head_dim`` is ``hidden_size // heads`` and others must be present:
            a config that does not state its width is not read as some 7B model.
    """
    hidden = fields.size("hidden_size")
    heads = fields.size("num_attention_heads", default=defaults.get("num_attention_heads"))
    # A class's own default holds when the field is absent; null always means "as many as heads".
    groups = defaults.get("num_key_value_heads", heads)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": fields.size("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size(
            "num_key_value_heads", default=heads if fields.has("num_key_value_heads") else groups
        ),
        "head_dim": fields.size("head_dim", default=defaults.get("head_dim", hidden // heads)),
        "intermediate_size": fields.size("intermediate_size"),
        "vocab_size": fields.size("vocab_size", default=defaults.get("vocab_size")),
        "max_position_embeddings": fields.size(
            "max_position_embeddings", default=defaults.get("max_position_embeddings", 2048)
        ),
        "hidden_act": fields.text("hidden_act", default="silu"),
        "tie_word_embeddings": fields.flag("tie_word_embeddings"),
        "attention_dropout": fields.share("attention_dropout"),
    }


def require_even_heads(fields: Fields) -> None:
    """Refuse a width that the heads do not divide, where the class refuses it too."""
    fields.divided(
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        "hidden_size by num_attention_heads",
    )


def rotary_factor(fields: Fields, default: float) -> float:
    """Share of a head that is rotated; stands in ``rope_parameters`` or beside it."""
    inner = fields.part("rope_parameters").share("partial_rotary_factor")
    return inner or fields.share("partial_rotary_factor", default=default)


def layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    """The config's own ``layer_types``, checked; empty when absent."""
    kinds = fields.texts("layer_types")
    unknown = next((kind for kind in kinds if kind not in _LAYER_TYPES), None)
    if unknown is not None:
        raise fields.error("layer_types", f"must be of {', '.join(_LAYER_TYPES)}, got {unknown!r}")
    if kinds and len(kinds) != layers:
        raise fields.error("layer_types", f"names {len(kinds)} layers of {layers}")
    return kinds


def alternating(layers: int, period: int) -> tuple[str, ...]:
    """Windowed layers with a full one at every ``period``-th."""
    return tuple(_LAYER_TYPES[bool((layer + 1) % period)] for layer in range(min(layers, 4096)))


def window(fields: Fields, default: int = 0) -> int:
    """``sliding_window``: the class's default when absent, none when null."""
    return fields.whole("sliding_window", default=0 if fields.has("sliding_window") else default)


def llama(fields: Fields) -> Values:
    """Llama 1 to 3 and what shares its class (Yi, SmolLM, TinyLlama, DeepSeek 7B)."""
    require_even_heads(fields)
    return _one_bias(fields) | {"mlp_bias": fields.flag("mlp_bias")}


def mistral(fields: Fields) -> Values:
    """Mistral 7B, Nemo, Small."""
    return decoder(fields, num_key_value_heads=8, max_position_embeddings=131072) | {
        "sliding_window": window(fields, 4096)
    }


def qwen2(fields: Fields) -> Values:
    """Qwen1.5, Qwen2, Qwen2.5: biases on q, k, v alone."""
    values = decoder(fields, num_key_value_heads=32, max_position_embeddings=32768)
    return values | qwen_windows(fields, values["num_hidden_layers"]) | {"attention_bias": True}


def qwen3(fields: Fields) -> Values:
    """Qwen3: norms on queries and keys, wide heads."""
    values = decoder(fields, num_key_value_heads=32, head_dim=128, max_position_embeddings=32768)
    bias = fields.flag("attention_bias")
    values |= qwen_windows(fields, values["num_hidden_layers"])
    return values | {"qk_norm": "head", "attention_bias": bias, "attention_out_bias": bias}


def qwen_windows(fields: Fields, layers: int) -> Values:
    """Qwen2 and Qwen3: windows behind a switch, from ``max_window_layers`` upwards."""
    kinds = layer_types(fields, layers)
    size = window(fields, 4096) if fields.flag("use_sliding_window") else 0
    if not size:
        return {}
    start = fields.whole("max_window_layers", default=28)
    if not kinds:
        kinds = tuple(_LAYER_TYPES[layer >= start] for layer in range(min(layers, 4096)))
    return {"sliding_window": size, "layer_types": kinds}


def phi(fields: Fields) -> Values:
    """Phi-1, 1.5 and 2: attention and feed-forward side by side, biases everywhere."""
    return decoder(fields) | {
        "hidden_act": fields.text("hidden_act", default="gelu_new"),
        "is_gated_act": False,
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "use_parallel_residual": True,
        "num_ln_in_parallel_attn": 1,
        "partial_rotary_factor": rotary_factor(fields, 0.5),
        "qk_norm": "head" if fields.flag("qk_layernorm") else "none",
        "hidden_dropout": fields.share("resid_pdrop"),
        "embedding_dropout": fields.share("embd_pdrop"),
    }


def phi3(fields: Fields) -> Values:
    """Phi-3, Phi-3.5 and Phi-4; the class does not use its ``embd_pdrop``."""
    return decoder(fields, max_position_embeddings=4096) | {
        "sliding_window": window(fields),
        "partial_rotary_factor": rotary_factor(fields, 1.0),
        "hidden_dropout": fields.share("resid_pdrop"),
    }


def stablelm(fields: Fields) -> Values:
    """StableLM 3B, 2-1.6B, 2-12B; heads are always ``hidden_size // heads`` wide."""
    values = decoder(fields, num_key_value_heads=32, max_position_embeddings=4096)
    parallel = fields.flag("use_parallel_residual")
    return values | {
        "head_dim": values["hidden_size"] // values["num_attention_heads"],
        "attention_bias": fields.flag("use_qkv_bias"),
        "use_parallel_residual": parallel,
        "num_ln_in_parallel_attn": int(parallel),
        "partial_rotary_factor": rotary_factor(fields, 0.25),
        "qk_norm": "per-head" if fields.flag("qk_layernorm") else "none",
        "hidden_dropout": fields.share("hidden_dropout"),
    }


def starcoder2(fields: Fields) -> Values:
    """StarCoder2: a plain feed-forward part, biases by one switch."""
    bias = fields.flag("use_bias", default=True)
    return decoder(fields, num_key_value_heads=2, max_position_embeddings=4096) | {
        "hidden_act": fields.text("hidden_act", default="gelu_pytorch_tanh"),
        "is_gated_act": False,
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "attention_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": bias,
        "sliding_window": window(fields),
        "hidden_dropout": fields.share("residual_dropout"),
        "embedding_dropout": fields.share("embedding_dropout"),
    }


def olmo(fields: Fields) -> Values:
    """OLMo 1: norms without weights."""
    return _one_bias(fields) | {
        "norm_affine": False,
        "clip_qkv": fields.number("clip_qkv", default=0.0) > 0,
    }


def olmo2(fields: Fields) -> Values:
    """OLMo 2: norms after the sublayers and on whole queries and keys."""
    return _one_bias(fields) | {"qk_norm": "full"}


def cohere(fields: Fields) -> Values:
    """Command R: side by side behind one norm, tied, 256,000 tokens."""
    return _one_bias(fields, max_position_embeddings=8192) | {
        "tie_word_embeddings": fields.flag("tie_word_embeddings", default=True),
        "use_parallel_residual": True,
        "num_ln_in_parallel_attn": 1,
        "qk_norm": "per-head" if fields.flag("use_qk_norm") else "none",
    }


def granite(fields: Fields) -> Values:
    """Granite 3: Llama with multipliers, which the class applies even when they are 1."""
    return _one_bias(fields) | {
        "mlp_bias": fields.flag("mlp_bias"),
        "scale_embedding": True,
    }


def _one_bias(fields: Fields, **defaults: int) -> Values:
    """Classes whose ``attention_bias`` holds for all four projections of attention."""
    bias = fields.flag("attention_bias")
    return decoder(fields, **defaults) | {"attention_bias": bias, "attention_out_bias": bias}


def glm(fields: Fields) -> Values:
    """GLM-4-9B in transformers' own classes (``glm`` and ``glm4``)."""
    values = decoder(fields, num_key_value_heads=2, head_dim=128, max_position_embeddings=131072)
    return values | {
        "attention_bias": fields.flag("attention_bias", default=True),
        "partial_rotary_factor": rotary_factor(fields, 0.5),
    }


READERS = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "phi": phi,
    "phi3": phi3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
    "olmo": olmo,
    "olmo2": olmo2,
    "cohere": cohere,
    "granite": granite,
    "glm": glm,
    "glm4": glm,
}
