"""`from_hf_config` against the configuration and model classes of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vram_plan.profiles.hf_config import CUSTOM_TYPES, MODEL_TYPES, from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import CatalogueEntry, catalogue

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

Read = str | Callable[[Any], object]

# Our field -> attribute of the configuration object (or what its class makes of it).
COMMON: dict[str, Read] = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "tie_word_embeddings": "tie_word_embeddings",
}
MODERN: dict[str, Read] = {
    **COMMON,
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": lambda c: getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "attention_dropout": "attention_dropout",
    "sliding_window": lambda c: getattr(c, "sliding_window", None) or 0,
}
GPT: dict[str, Read] = {
    **COMMON,
    "head_dim": lambda c: c.n_embd // c.n_head,
    "intermediate_size": lambda c: c.n_inner or 4 * c.n_embd,
    "hidden_act": "activation_function",
    "max_position_embeddings": "n_positions",
    "hidden_dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
}
BERT: dict[str, Read] = {
    **COMMON,
    "num_key_value_heads": "num_attention_heads",
    "head_dim": lambda c: c.hidden_size // c.num_attention_heads,
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "embedding_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
T5: dict[str, Read] = {
    **{k: v for k, v in COMMON.items() if k != "tie_word_embeddings"},
    "num_decoder_layers": "num_decoder_layers",
    "num_key_value_heads": "num_heads",
    "decoder_attention_heads": "num_heads",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "decoder_intermediate_size": "d_ff",
    "hidden_act": "dense_act_fn",
    "is_gated_act": "is_gated_act",
    "relative_attention_num_buckets": "relative_attention_num_buckets",
    "hidden_dropout": "dropout_rate",
    "attention_dropout": "dropout_rate",
    "embedding_dropout": "dropout_rate",
    "activation_dropout": "dropout_rate",
    "is_encoder_decoder": "is_encoder_decoder",
}
BART: dict[str, Read] = {
    **COMMON,
    "num_decoder_layers": "decoder_layers",
    "num_key_value_heads": "encoder_attention_heads",
    "decoder_attention_heads": "decoder_attention_heads",
    "head_dim": lambda c: c.d_model // c.encoder_attention_heads,
    "intermediate_size": "encoder_ffn_dim",
    "decoder_intermediate_size": "decoder_ffn_dim",
    "hidden_act": "activation_function",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "is_encoder_decoder": "is_encoder_decoder",
}
ROPE_SHARE: dict[str, Read] = {
    "partial_rotary_factor": lambda c: c.rope_parameters["partial_rotary_factor"]
}
LAYERS: dict[str, Read] = {"layer_types": lambda c: tuple(c.layer_types)}
LOCAL_EXPERTS: dict[str, Read] = {
    "num_experts": "num_local_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "moe_intermediate_size": "intermediate_size",
}
QWEN_EXPERTS: dict[str, Read] = {
    "num_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
    "decoder_sparse_step": "decoder_sparse_step",
    "mlp_only_layers": lambda c: tuple(c.mlp_only_layers),
}
LATENT: dict[str, Read] = {
    **MODERN,
    "head_dim": "head_dim",
    "q_lora_rank": lambda c: c.q_lora_rank or 0,
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "qk_head_dim": "qk_head_dim",
    "v_head_dim": "v_head_dim",
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "moe_intermediate_size": "moe_intermediate_size",
    "shared_expert_intermediate_size": lambda c: c.n_shared_experts * c.moe_intermediate_size,
    "first_k_dense_replace": "first_k_dense_replace",
}
GEMMA2: dict[str, Read] = {
    **MODERN,
    **LAYERS,
    "hidden_act": "hidden_activation",
    "attn_logit_softcapping": lambda c: c.attn_logit_softcapping is not None,
    "final_logit_softcapping": lambda c: c.final_logit_softcapping is not None,
}
FIELDS: dict[str, dict[str, Read]] = {
    "llama": MODERN,
    "mistral": MODERN,
    "qwen2": MODERN,
    "qwen3": MODERN,
    "gemma": MODERN,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "phi": {
        **MODERN,
        **ROPE_SHARE,
        "hidden_dropout": "resid_pdrop",
        "embedding_dropout": "embd_pdrop",
    },
    "phi3": {**MODERN, **ROPE_SHARE, "hidden_dropout": "resid_pdrop"},
    "stablelm": {
        **MODERN,
        **ROPE_SHARE,
        "hidden_dropout": "hidden_dropout",
        "use_parallel_residual": "use_parallel_residual",
    },
    "starcoder2": {
        **MODERN,
        "hidden_dropout": "residual_dropout",
        "embedding_dropout": "embedding_dropout",
    },
    "olmo": {**MODERN, "clip_qkv": lambda c: c.clip_qkv is not None},
    "olmo2": MODERN,
    "cohere": MODERN,
    "granite": MODERN,
    "glm": {**MODERN, **ROPE_SHARE},
    "glm4": {**MODERN, **ROPE_SHARE},
    "mixtral": {**MODERN, **LOCAL_EXPERTS},
    "phimoe": {**MODERN, **LOCAL_EXPERTS},
    "granitemoe": {**MODERN, **LOCAL_EXPERTS},
    "gpt_oss": {**MODERN, **LOCAL_EXPERTS, **LAYERS},
    "qwen2_moe": {
        **MODERN,
        **QWEN_EXPERTS,
        "shared_expert_intermediate_size": "shared_expert_intermediate_size",
    },
    "qwen3_moe": {**MODERN, **QWEN_EXPERTS},
    "olmoe": {
        **MODERN,
        "num_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_tok",
        "moe_intermediate_size": "intermediate_size",
        "clip_qkv": lambda c: c.clip_qkv is not None,
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "dbrx": {
        **COMMON,
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": lambda c: c.d_model // c.n_heads,
        "moe_intermediate_size": lambda c: c.ffn_config.ffn_hidden_size,
        "num_experts": lambda c: c.ffn_config.moe_num_experts,
        "num_experts_per_tok": lambda c: c.ffn_config.moe_top_k,
        "max_position_embeddings": "max_seq_len",
        "hidden_dropout": "resid_pdrop",
        "attention_dropout": lambda c: c.attn_config.attn_pdrop,
        "clip_qkv": lambda c: c.attn_config.clip_qkv is not None,
    },
    "gpt2": {**GPT, "position_embedding_rows": "n_positions"},
    "gpt_bigcode": {**GPT, "num_key_value_heads": "num_key_value_heads"},
    "gptj": {**GPT, "rotary_dim": "rotary_dim"},
    "codegen": {**GPT, "rotary_dim": "rotary_dim"},
    "gpt_neo": {
        **COMMON,
        "intermediate_size": lambda c: c.intermediate_size or 4 * c.hidden_size,
        "hidden_act": "activation_function",
        "sliding_window": "window_size",
        "layer_types": lambda c: tuple(
            {"global": "full_attention", "local": "sliding_attention"}[kind]
            for kind in c.attention_layers
        ),
        "position_embedding_rows": "max_position_embeddings",
        "hidden_dropout": "resid_dropout",
        "embedding_dropout": "embed_dropout",
        "attention_dropout": "attention_dropout",
    },
    "gpt_neox": {
        **COMMON,
        **ROPE_SHARE,
        "intermediate_size": "intermediate_size",
        "hidden_act": "hidden_act",
        "use_parallel_residual": "use_parallel_residual",
        "max_position_embeddings": "max_position_embeddings",
        "hidden_dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
    },
    "opt": {
        **COMMON,
        "intermediate_size": "ffn_dim",
        "hidden_act": "activation_function",
        "position_embedding_rows": lambda c: c.max_position_embeddings + 2,
        "embedding_size": lambda c: (
            0 if c.word_embed_proj_dim == c.hidden_size else c.word_embed_proj_dim
        ),
        "do_layer_norm_before": "do_layer_norm_before",
        "norm_affine": "layer_norm_elementwise_affine",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    "bloom": {
        **COMMON,
        "residual_from_layernorm": "apply_residual_connection_post_layernorm",
        "hidden_dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
    },
    "falcon": {
        **COMMON,
        "head_dim": "head_dim",
        "intermediate_size": "ffn_hidden_size",
        "hidden_act": "activation",
        "new_decoder_architecture": "new_decoder_architecture",
        "use_parallel_residual": "parallel_attn",
        "hidden_dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
    },
    "mpt": {**COMMON, "max_position_embeddings": "max_seq_len"},
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "electra": {
        **BERT,
        "embedding_size": lambda c: 0 if c.embedding_size == c.hidden_size else c.embedding_size,
    },
    "albert": {
        **BERT,
        "embedding_size": "embedding_size",
        "num_hidden_groups": "num_hidden_groups",
        "inner_group_num": "inner_group_num",
    },
    "distilbert": {
        **COMMON,
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "position_embedding_rows": "max_position_embeddings",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
    },
    "deberta-v2": BERT,
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "bart": {**BART, "position_embedding_rows": lambda c: c.max_position_embeddings + 2},
    "mbart": {**BART, "position_embedding_rows": lambda c: c.max_position_embeddings + 2},
    "marian": {**BART, "position_embedding_rows": "max_position_embeddings"},
    "pegasus": {**BART, "position_embedding_rows": "max_position_embeddings"},
}

NARROW: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
VARIATIONS: list[tuple[str, dict[str, Any]]] = [
    ("llama", NARROW),
    ("llama", {**NARROW, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("llama", {**NARROW, "head_dim": 32, "attention_dropout": 0.1, "hidden_act": "gelu"}),
    ("mistral", {**NARROW, "num_key_value_heads": 4, "sliding_window": None}),
    ("mistral", {**NARROW, "num_key_value_heads": 1, "head_dim": 24}),
    ("qwen2", {**NARROW, "num_key_value_heads": 2, "use_sliding_window": True}),
    ("qwen3", {**NARROW, "num_key_value_heads": None}),
    ("gemma", {**NARROW, "num_key_value_heads": 1, "hidden_act": "gelu"}),
    ("gemma2", {**NARROW, "attn_logit_softcapping": None}),
    ("gemma3_text", {**NARROW, "num_hidden_layers": 8}),
    ("phi", {**NARROW, "resid_pdrop": 0.1, "embd_pdrop": 0.2}),
    ("phi3", {**NARROW, "num_key_value_heads": 2, "sliding_window": 2047}),
    ("stablelm", {**NARROW, "num_key_value_heads": 4, "use_parallel_residual": True}),
    ("starcoder2", {**NARROW, "residual_dropout": 0.1, "embedding_dropout": 0.2}),
    ("olmo", {**NARROW, "clip_qkv": 8.0}),
    ("glm", {**NARROW, "num_key_value_heads": 4, "head_dim": 32}),
    ("mixtral", {**NARROW, "num_local_experts": 4, "num_key_value_heads": 4}),
    ("qwen2_moe", {**NARROW, "num_key_value_heads": 4, "mlp_only_layers": [0]}),
    ("qwen3_moe", {**NARROW, "num_key_value_heads": 2, "decoder_sparse_step": 2}),
    ("deepseek_v2", {**NARROW, "q_lora_rank": None, "num_experts_per_tok": 6}),
    ("deepseek_v3", {**NARROW, "num_key_value_heads": 4, "n_shared_experts": 2}),
    ("gpt_oss", {**NARROW, "num_key_value_heads": 2, "sliding_window": 64}),
    ("dbrx", {"ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 16, "moe_top_k": 4}}),
    ("dbrx", {"attn_config": {"kv_n_heads": 8, "clip_qkv": 8}}),
    ("gpt2", {**NARROW, "n_inner": 100, "embd_pdrop": 0.0}),
    ("gpt_bigcode", {"n_embd": 64, "n_head": 4, "multi_query": False}),
    ("gptj", {**NARROW, "rotary_dim": 8}),
    ("gpt_neo", {**NARROW, "attention_types": [[["global", "local", "local"], 1]]}),
    ("gpt_neox", {**NARROW, "rotary_pct": 0.5, "use_parallel_residual": False}),
    ("opt", {**NARROW, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("bloom", {**NARROW, "apply_residual_connection_post_layernorm": True}),
    ("falcon", {**NARROW, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {**NARROW, "multi_query": False, "parallel_attn": False, "alibi": True}),
    ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3}),
    ("bert", {**NARROW, "hidden_dropout_prob": 0.0, "type_vocab_size": 1}),
    ("albert", {**NARROW, "num_hidden_groups": 2, "inner_group_num": 2}),
    ("t5", {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 2}),
    ("t5", {"feed_forward_proj": "gated-silu", "d_kv": 32, "dropout_rate": 0.0}),
    ("bart", {"d_model": 64, "decoder_attention_heads": 4, "decoder_ffn_dim": 100}),
    ("marian", {"d_model": 512, "encoder_layers": 6, "decoder_layers": 5}),
]
# The one default that its own class cannot build: DeepSeek-V2 routes to None experts.
DEFAULTS: list[tuple[str, dict[str, Any]]] = [
    (kind, {"num_experts_per_tok": 6} if kind == "deepseek_v2" else {}) for kind in FIELDS
]


def config_of(kind: str, changes: dict[str, Any]) -> Any:
    return transformers.AutoConfig.for_model(**(changes | {"model_type": kind}))


def spec_of(config: Any, *, only_differences: bool) -> ModelSpec:
    raw = json.loads(config.to_json_string(use_diff=only_differences))
    return from_hf_config(raw, name="test", source="test")


def test_every_model_type_of_transformers_is_compared() -> None:
    assert set(FIELDS) | set(CUSTOM_TYPES) | {"gemma3"} == set(MODEL_TYPES)


@pytest.mark.parametrize("only_differences", [False, True])
@pytest.mark.parametrize(("kind", "changes"), DEFAULTS + VARIATIONS)
def test_fields_agree_with_the_configuration_class(
    kind: str, changes: dict[str, Any], only_differences: bool
) -> None:
    config = config_of(kind, changes)
    spec = spec_of(config, only_differences=only_differences)
    for field, read in FIELDS[kind].items():
        expected = getattr(config, read) if isinstance(read, str) else read(config)
        assert getattr(spec, field) == expected, field
    assert spec.model_type == kind


@pytest.mark.parametrize(
    "entry",
    [entry for entry in catalogue() if entry.config["model_type"] not in CUSTOM_TYPES],
    ids=lambda entry: entry.name,
)
def test_catalogue_agrees_with_the_configuration_class(entry: CatalogueEntry) -> None:
    kind = entry.config["model_type"]
    config, read_as = config_of(kind, entry.config), FIELDS.get(kind)
    if kind == "gemma3":
        config, read_as = config.text_config, FIELDS["gemma3_text"]
    assert read_as is not None
    spec = entry.spec()
    for field, read in read_as.items():
        expected = getattr(config, read) if isinstance(read, str) else read(config)
        assert getattr(spec, field) == expected, field


def test_the_composite_with_images_is_read_as_its_language_model() -> None:
    text = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 7}
    config = config_of("gemma3", {"text_config": text})
    spec = spec_of(config, only_differences=False)
    assert spec.model_type == "gemma3_text"
    assert spec.hidden_size == 64
    assert spec.layer_types == tuple(config.text_config.layer_types)
    assert "language model only" in spec.note
