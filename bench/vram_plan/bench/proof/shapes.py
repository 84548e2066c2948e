"""Small models of every family, with the structure of the real ones: their `config.json` fields."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from vram_plan.bench.proof.encoders import ENCODERS, POSITIONS

__all__ = ["GROUPS", "small_model"]

Fields = dict[str, Any]

GROUPS: dict[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "qwen2", "qwen3", "phi3", "granite", "olmo", "olmo2"),
    "gemma": ("gemma", "gemma2", "gemma3_text", "cohere", "glm", "glm4"),
    "gpt": (
        "gpt2",
        "gpt_neo",
        "gptj",
        "codegen",
        "gpt_neox",
        "opt",
        "bloom",
        "mpt",
        "gpt_bigcode",
        "falcon",
        "phi",
        "stablelm",
        "starcoder2",
    ),
    "experts": (
        "mixtral",
        "phimoe",
        "granitemoe",
        "gpt_oss",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "deepseek_v2",
        "deepseek_v3",
        "dbrx",
    ),
    "encoder": ("bert", "roberta", "xlm-roberta", "electra", "albert", "distilbert"),
    "seq2seq": ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian"),
}
"""Families of one build; every ``model_type`` that transformers has and the plan knows."""

_WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small_model(kind: str, random: Random) -> Fields:
    """The `config.json` of a small model of this ``model_type``."""
    head_dim = random.choice((16, 32, 64))
    heads = random.choice([n for n in (2, 4, 8) if 64 <= n * head_dim <= 512])
    width = heads * head_dim
    base = {
        "model_type": kind,
        "width": width,
        "heads": heads,
        "kv_heads": random.choice([n for n in (1, 2, 4, 8) if n <= heads and heads % n == 0]),
        "head_dim": head_dim,
        "inner": random.choice((2 * width, 4 * width, 8 * width // 3 // 16 * 16, 3 * width + 32)),
        "layers": random.choice((2, 2, 3)),
        "vocabulary": random.choice((511, 1000, 2048, 5003, 8192)),
    }
    return _WRITERS.get(kind, _decoder)(base, random) | {"model_type": kind}


def _decoder(base: Fields, random: Random) -> Fields:
    """Names most decoders have."""
    return _WORDS | {
        "hidden_size": base["width"],
        "intermediate_size": base["inner"],
        "num_hidden_layers": base["layers"],
        "num_attention_heads": base["heads"],
        "num_key_value_heads": base["kv_heads"],
        "vocab_size": base["vocabulary"],
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": random.random() < 0.3,
    }


def _wide_heads(base: Fields, random: Random) -> Fields:
    """Decoders whose heads need not add up to the width."""
    return _decoder(base, random) | {"head_dim": random.choice((base["head_dim"], 32))}


def _llama(base: Fields, random: Random) -> Fields:
    bias = random.random() < 0.2
    return _decoder(base, random) | {"attention_bias": bias, "mlp_bias": bias}


def _windowed(base: Fields, random: Random) -> Fields:
    return _decoder(base, random) | {"sliding_window": random.choice((None, 32))}


def _gemma(base: Fields, random: Random) -> Fields:
    return _wide_heads(base, random) | {"tie_word_embeddings": True}


def _gemma2(base: Fields, random: Random) -> Fields:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"][: base["layers"]]
    return _gemma(base, random) | {"sliding_window": 32, "layer_types": kinds}


def _gpt2(base: Fields, random: Random) -> Fields:
    return _WORDS | {
        "n_embd": base["width"],
        "n_layer": base["layers"],
        "n_head": base["heads"],
        "n_inner": base["inner"],
        "vocab_size": base["vocabulary"],
        "n_positions": POSITIONS,
    }


def _codegen(base: Fields, random: Random) -> Fields:
    """Its classes cut the heads into four groups."""
    heads = max(4, base["heads"])
    return _gptj(base | {"heads": heads, "width": heads * base["head_dim"]}, random)


def _gptj(base: Fields, random: Random) -> Fields:
    return _gpt2(base, random) | {"rotary_dim": base["head_dim"] // 2}


def _gpt_neo(base: Fields, random: Random) -> Fields:
    return _WORDS | {
        "hidden_size": base["width"],
        "num_layers": 2,
        "num_heads": base["heads"],
        "intermediate_size": base["inner"],
        "vocab_size": base["vocabulary"],
        "max_position_embeddings": POSITIONS,
        "attention_types": [[["global", "local"], 1]],
    }


def _ungrouped(base: Fields, random: Random) -> Fields:
    return _decoder(base | {"kv_heads": base["heads"]}, random)


def _opt(base: Fields, random: Random) -> Fields:
    narrow = random.random() < 0.3
    return _ungrouped(base, random) | {
        "ffn_dim": base["inner"],
        "word_embed_proj_dim": base["width"] // 2 if narrow else base["width"],
        "do_layer_norm_before": not narrow,
    }


def _bloom(base: Fields, random: Random) -> Fields:
    return _WORDS | {
        "hidden_size": base["width"],
        "n_layer": base["layers"],
        "n_head": base["heads"],
        "vocab_size": base["vocabulary"],
    }


def _mpt(base: Fields, random: Random) -> Fields:
    return _WORDS | {
        "d_model": base["width"],
        "n_layers": base["layers"],
        "n_heads": base["heads"],
        "vocab_size": base["vocabulary"],
        "max_seq_len": POSITIONS,
        "attn_config": {"clip_qkv": random.choice((None, 8.0))},
    }


def _falcon(base: Fields, random: Random) -> Fields:
    # Its class knows no ``num_key_value_heads``, which PEFT would take for the prefix's heads.
    new = random.random() < 0.5
    fields = _decoder(base, random)
    del fields["num_key_value_heads"]
    return fields | {
        "ffn_hidden_size": base["inner"],
        "num_kv_heads": base["kv_heads"],
        "new_decoder_architecture": new,
        "multi_query": True,
    }


def _stablelm(base: Fields, random: Random) -> Fields:
    return _decoder(base, random) | {
        "use_qkv_bias": random.random() < 0.5,
        "qk_layernorm": random.random() < 0.3,
        "use_parallel_residual": random.random() < 0.3,
    }


def _local_experts(base: Fields, random: Random) -> Fields:
    return _decoder(base, random) | {
        "num_local_experts": random.choice((4, 8)),
        "num_experts_per_tok": 2,
    }


def _gpt_oss(base: Fields, random: Random) -> Fields:
    return _local_experts(base, random) | {"head_dim": 32, "sliding_window": 32}


def _experts(base: Fields, random: Random) -> Fields:
    return _decoder(base, random) | {
        "num_experts": 8,
        "num_experts_per_tok": random.choice((2, 4)),
        "moe_intermediate_size": base["inner"] // 2,
        "shared_expert_intermediate_size": base["inner"],
    }


def _deepseek(base: Fields, random: Random) -> Fields:
    return _ungrouped(base, random) | {
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": base["inner"] // 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": random.choice((None, 48)) if base["model_type"] == "deepseek_v2" else 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_group": 8,
        "topk_group": 4,
    }


def _dbrx(base: Fields, random: Random) -> Fields:
    return {
        "d_model": base["width"],
        "n_layers": base["layers"],
        "n_heads": base["heads"],
        "vocab_size": base["vocabulary"],
        "max_seq_len": POSITIONS,
        "attn_config": {"kv_n_heads": base["kv_heads"], "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": base["width"],
            "ffn_hidden_size": base["inner"],
            "moe_num_experts": 8,
            "moe_top_k": 4,
        },
    }


_WRITERS: dict[str, Callable[[Fields, Random], Fields]] = {
    "llama": _llama,
    "mistral": _windowed,
    "qwen3": _wide_heads,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma2,
    "glm": _wide_heads,
    "glm4": _wide_heads,
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt2,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "codegen": _codegen,
    "gpt_neox": _ungrouped,
    "phi": _ungrouped,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "falcon": _falcon,
    "stablelm": _stablelm,
    "starcoder2": _windowed,
    "mixtral": _local_experts,
    "phimoe": _local_experts,
    "granitemoe": _local_experts,
    "gpt_oss": _gpt_oss,
    "qwen2_moe": _experts,
    "qwen3_moe": _experts,
    "olmoe": _experts,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "dbrx": _dbrx,
    **ENCODERS,
}
