"""Models whose code lives beside their weights and not in transformers."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.profiles.hf_config import CUSTOM_TYPES, from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import catalogue

# Published counts of models whose classes are not in transformers, from the shapes that
# their configs state: PEFT's `print_trainable_parameters` and the models' own pages.
CUSTOM: list[tuple[dict[str, Any], dict[str, object], int]] = [
    (  # https://huggingface.co/THUDM/chatglm-6b: 28 layers, the head is the embedding
        {
            "model_type": "chatglm",
            "hidden_size": 4096,
            "inner_hidden_size": 16384,
            "num_layers": 28,
            "num_attention_heads": 32,
            "vocab_size": 130528,
            "position_encoding_2d": True,
        },
        {"model_type": "chatglm1", "is_gated_act": False, "tie_word_embeddings": True},
        6_173_286_400,
    ),
    (  # https://huggingface.co/THUDM/chatglm2-6b
        {
            "model_type": "chatglm",
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "num_layers": 28,
            "num_attention_heads": 32,
            "kv_channels": 128,
            "padded_vocab_size": 65024,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "add_qkv_bias": True,
            "add_bias_linear": False,
            "seq_length": 32768,
        },
        {"num_key_value_heads": 2, "rotary_dim": 64, "max_position_embeddings": 32768},
        6_243_584_000,
    ),
    (  # https://huggingface.co/baichuan-inc/Baichuan-7B
        {
            "model_type": "baichuan",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 64000,
            "max_position_embeddings": 4096,
        },
        {"position_embedding_type": "rope"},
        7_000_559_616,
    ),
    (  # https://huggingface.co/baichuan-inc/Baichuan-13B-Base
        {
            "model_type": "baichuan",
            "hidden_size": 5120,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "vocab_size": 64000,
            "model_max_length": 4096,
        },
        {"position_embedding_type": "alibi", "max_position_embeddings": 4096},
        13_264_901_120,
    ),
    (  # https://huggingface.co/Qwen/Qwen-7B
        {
            "model_type": "qwen",
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "kv_channels": 128,
            "vocab_size": 151936,
            "no_bias": True,
        },
        {"intermediate_size": 11008, "attention_bias": True, "attention_out_bias": False},
        7_721_324_544,
    ),
]


def count(spec: ModelSpec) -> int:
    """Weights of a decoder: LayerNorm has two vectors, RMSNorm one."""
    h, i, vectors = spec.hidden_size, spec.intermediate_size, 1 if spec.is_gated_act else 2
    qkv = spec.query_dim + 2 * spec.kv_dim
    layer = h * qkv + spec.query_dim * h + (3 if spec.is_gated_act else 2) * h * i
    layer += 2 * vectors * h + spec.attention_bias * qkv + spec.attention_out_bias * h
    layer += spec.mlp_bias * (i + h)
    tables = spec.vocab_size * h * (1 if spec.tie_word_embeddings else 2)
    return spec.num_hidden_layers * layer + tables + vectors * h


@pytest.mark.parametrize(("raw", "expected", "parameters"), CUSTOM)
def test_models_outside_transformers(
    raw: dict[str, Any], expected: dict[str, object], parameters: int
) -> None:
    spec = from_hf_config(raw, name="test")
    for field, value in expected.items():
        assert getattr(spec, field) == value, field
    assert count(spec) == parameters


def test_catalogue_counts_of_models_outside_transformers() -> None:
    for entry in catalogue():
        if entry.config["model_type"] in CUSTOM_TYPES:
            assert count(entry.spec()) == entry.parameters, entry.name
