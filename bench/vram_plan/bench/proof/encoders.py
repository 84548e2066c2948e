"""Small encoders and encoder-decoders: their `config.json` fields."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["ENCODERS", "POSITIONS"]

Fields = dict[str, Any]

POSITIONS = 512
"""Rows of learned position tables: room for the longest sequence drawn and its prompts."""


def _bert(base: Fields, random: Random) -> Fields:
    return {
        "hidden_size": base["width"],
        "intermediate_size": base["inner"],
        "num_hidden_layers": base["layers"],
        "num_attention_heads": base["heads"],
        "vocab_size": base["vocabulary"],
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 1 if "roberta" in base["model_type"] else 0,
    }


def _narrow(base: Fields, random: Random) -> Fields:
    return _bert(base, random) | {"embedding_size": random.choice((64, base["width"]))}


def _distilbert(base: Fields, random: Random) -> Fields:
    return {
        "dim": base["width"],
        "n_layers": base["layers"],
        "n_heads": base["heads"],
        "hidden_dim": base["inner"],
        "vocab_size": base["vocabulary"],
        "max_position_embeddings": POSITIONS,
    }


def _t5(base: Fields, random: Random) -> Fields:
    return {
        "d_model": base["width"],
        "num_layers": base["layers"],
        "num_decoder_layers": random.choice((2, 3)),
        "num_heads": base["heads"],
        "d_kv": random.choice((base["head_dim"], 48)),
        "d_ff": base["inner"],
        "vocab_size": base["vocabulary"],
        "feed_forward_proj": random.choice(("relu", "gated-gelu")),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _bart(base: Fields, random: Random) -> Fields:
    return {
        "d_model": base["width"],
        "encoder_layers": base["layers"],
        "decoder_layers": random.choice((2, 3)),
        "encoder_attention_heads": base["heads"],
        "decoder_attention_heads": base["heads"],
        "encoder_ffn_dim": base["inner"],
        "decoder_ffn_dim": 2 * base["width"],
        "vocab_size": base["vocabulary"],
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }


ENCODERS: dict[str, Callable[[Fields, Random], Fields]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "electra": _narrow,
    "albert": _narrow,
    "distilbert": _distilbert,
    "t5": _t5,
    "mt5": _t5,
    "umt5": _t5,
    "bart": _bart,
    "mbart": _bart,
    "pegasus": _bart,
    "marian": _bart,
}
