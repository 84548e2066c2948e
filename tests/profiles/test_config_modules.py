"""`from_hf_config` against the modules that the classes of transformers build (on `meta`)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from vram_plan.profiles.hf_config import CUSTOM_TYPES, MODEL_TYPES, from_hf_config

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

MASKED = ("bert", "roberta", "xlm-roberta", "electra", "albert", "distilbert", "deberta-v2")
WITHOUT_GROUPS = (
    *MASKED,
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "codegen", "opt", "bloom", "mpt", "dbrx"),
    *("t5", "mt5", "umt5", "bart", "mbart", "marian", "pegasus", "gpt_bigcode", "falcon"),
)
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
ALL_BIASES = {"attention_bias": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in MODEL_TYPES if kind not in (*CUSTOM_TYPES, "gemma3")),
    *((kind, ALL_BIASES) for kind in ("qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2")),
    *((kind, ALL_BIASES) for kind in ("cohere", "olmoe", "granitemoe", "qwen3_moe", "phimoe")),
    *((kind, {"attention_bias": True, "mlp_bias": True}) for kind in ("llama", "granite")),
    *((kind, {"attention_bias": False}) for kind in ("glm", "glm4", "gpt_neox", "gpt_oss")),
    *((kind, {"tie_word_embeddings": True}) for kind in ("llama", "mixtral", "gptj", "gpt_neox")),
    *((kind, {"tie_word_embeddings": False}) for kind in ("gpt2", "bert", "gemma", "opt")),
    ("phimoe", {"lm_head_bias": True}),
    ("starcoder2", {"use_bias": False}),
    ("stablelm", {"use_qkv_bias": True, "qk_layernorm": True}),
    ("qwen2_moe", {"qkv_bias": False}),
    ("phi", {"qk_layernorm": True}),
    ("cohere", {"use_qk_norm": True}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {"word_embed_proj_dim": 32}),
    ("falcon", {"bias": True, "multi_query": False, "parallel_attn": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("gpt_bigcode", {"multi_query": False}),
    ("deepseek_v2", {"attention_bias": True, "q_lora_rank": None}),
    ("deepseek_v3", {"attention_bias": True, "first_k_dense_replace": 1}),
    ("qwen3_moe", {"mlp_only_layers": [1]}),
    ("t5", {"feed_forward_proj": "gated-gelu"}),
    ("deberta-v2", {"relative_attention": True, "position_buckets": 32, "pos_att_type": "c2p|p2c"}),
    ("deberta-v2", {"relative_attention": True, "position_biased_input": False}),
    ("deberta-v2", {"type_vocab_size": 2, "conv_kernel_size": 3}),
    ("marian", {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 80}),
    ("electra", {"embedding_size": 64}),
    ("albert", {"num_hidden_groups": 3, "inner_group_num": 2}),
]
# What a class needs beyond the small sizes to be built at all.
NEEDS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4},
    "deepseek_v3": {"n_routed_experts": 16, "first_k_dense_replace": 1},
    "dbrx": {"attn_config": {"rope_theta": 500000.0, "kv_n_heads": 2, "clip_qkv": 8}},
    "marian": {"pad_token_id": 1},
    "bart": {"pad_token_id": 1},
    "mbart": {"pad_token_id": 1},
    "pegasus": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}
QKV = re.compile(
    r"(\bq_proj|query_key_value|qkv_proj|Wqkv|c_attn|query|query_proj|q_lin"
    r"|q_a_proj|kv_a_proj_with_mqa)\.bias$"
)
OUT = re.compile(
    r"(o_proj|out_proj|attn\.c_proj|attention\.dense|self_attn\.dense|attention\.output\.dense"
    r"|out_lin)\.bias$"
)
UP = re.compile(
    r"(up_proj|gate_up_proj|experts\.gate_up_proj_bias|fc1|fc_in|c_fc|dense_h_to_4h|lin1|ffn"
    r"|intermediate\.dense|wi|wi_0)(\.bias|(?<=_bias))$"
)
GATE = re.compile(r"gate_proj|gate_up_proj|wi_1|\.v1$")
POSITIONS = re.compile(r"(wpe|embed_positions|position_embeddings)\.weight$")


def build(kind: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    sizes = dict(SMALL)
    if kind not in WITHOUT_GROUPS:
        sizes["num_key_value_heads"] = 4 if kind.startswith("deepseek") else 2
    config = transformers.AutoConfig.for_model(kind, **(sizes | NEEDS.get(kind, {}) | changes))
    auto = transformers.AutoModelForCausalLM
    if getattr(config, "is_encoder_decoder", False):
        auto = transformers.AutoModelForSeq2SeqLM
    elif kind in MASKED:
        auto = transformers.AutoModelForMaskedLM
    with torch.device("meta"):
        return config, auto.from_config(config)


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_parameters_exist_as_the_spec_says(kind: str, changes: dict[str, Any]) -> None:
    config, model = build(kind, changes)
    spec = from_hf_config(json.loads(config.to_json_string(use_diff=False)), name=kind)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}

    def some(pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(name) for name in shapes)

    assert spec.attention_bias == some(QKV)
    assert spec.attention_out_bias == some(OUT)
    assert spec.mlp_bias == some(UP)
    assert spec.is_gated_act == some(GATE)
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert spec.lm_head_bias == (getattr(head, "bias", None) is not None)
    if kind not in ("t5", "mt5", "umt5"):  # the class ties them, a checkpoint may untie them
        tied_to = model.model.decoder.embed_tokens if spec.decoder_vocab_size else table
        assert spec.tie_word_embeddings == (head.weight is tied_to.weight)
    assert tuple(table.weight.shape) == (spec.vocab_size, spec.embedding_size or spec.hidden_size)
    rows = {shape[0] for name, shape in shapes.items() if POSITIONS.search(name)}
    frozen = {b.shape[0] for name, b in model.named_buffers() if POSITIONS.search(name)}
    assert (rows or frozen or {0}) == {spec.position_embedding_rows}


def one(shapes: dict[str, tuple[int, ...]], pattern: str) -> tuple[int, ...]:
    return next(shape for name, shape in shapes.items() if re.search(pattern, name))


def built(kind: str, **changes: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    config, model = build(kind, changes)
    spec = from_hf_config(json.loads(config.to_json_string(use_diff=False)), name=kind)
    return spec, {name: tuple(weight.shape) for name, weight in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "changes", "norm"),
    [
        ("llama", {}, "none"),
        ("qwen3", {}, "head"),
        ("qwen3_moe", {}, "head"),
        ("gemma3_text", {}, "head"),
        ("phi", {"qk_layernorm": True}, "head"),
        ("stablelm", {"qk_layernorm": True}, "per-head"),
        ("cohere", {"use_qk_norm": True}, "per-head"),
        ("olmo2", {}, "full"),
        ("olmoe", {}, "full"),
    ],
)
def test_norms_on_queries_and_keys(kind: str, changes: dict[str, Any], norm: str) -> None:
    spec, shapes = built(kind, **changes)
    assert spec.qk_norm == norm
    pattern = r"layers\.0\.self_attn\.(q_norm|q_layernorm).*weight"
    weights = [shape for name, shape in shapes.items() if re.search(pattern, name)]
    elements = sum(torch.Size(shape).numel() for shape in weights)
    heads = {"none": 0, "head": 1, "per-head": 4, "full": 4}[norm]
    assert elements == heads * spec.head_dim


def test_grouped_and_single_key_heads() -> None:
    spec, shapes = built("falcon")
    assert spec.num_key_value_heads == 1
    assert one(shapes, "query_key_value")[0] == spec.query_dim + 2 * spec.kv_dim
    spec, shapes = built("falcon", new_decoder_architecture=True, num_kv_heads=2)
    assert one(shapes, "query_key_value")[0] == spec.query_dim + 2 * spec.kv_dim == 64 + 2 * 32
    spec, shapes = built("gpt_bigcode")
    assert one(shapes, "c_attn")[0] == spec.query_dim + 2 * spec.kv_dim


@pytest.mark.parametrize(
    ("changes", "norms"),
    [
        ({}, 1),
        ({"new_decoder_architecture": True}, 2),
        ({"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, 1),
        ({"num_ln_in_parallel_attn": 2}, 2),
    ],
)
def test_norms_of_a_parallel_falcon(changes: dict[str, Any], norms: int) -> None:
    spec, shapes = built("falcon", **changes)
    names = [name for name in shapes if re.search(r"h\.0\..*(ln_|layernorm).*weight", name)]
    assert len(names) == norms == spec.num_ln_in_parallel_attn


def test_latent_attention() -> None:
    spec, shapes = built("deepseek_v3")
    assert spec.is_latent
    assert one(shapes, "q_a_proj") == (spec.q_lora_rank, 64)
    assert one(shapes, "q_b_proj") == (spec.query_dim, spec.q_lora_rank)
    assert one(shapes, "kv_a_proj") == (spec.kv_lora_rank + spec.qk_rope_head_dim, 64)
    up = spec.num_attention_heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    assert one(shapes, "kv_b_proj") == (up, spec.kv_lora_rank)
    spec, shapes = built("deepseek_v2", q_lora_rank=None)
    assert spec.q_lora_rank == 0
    assert one(shapes, r"\bq_proj") == (spec.query_dim, 64)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mixtral", {}),
        ("qwen2_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [0, 2]}),
        ("deepseek_v2", {"first_k_dense_replace": 1}),
        ("deepseek_v3", {"first_k_dense_replace": 2}),
        ("gpt_oss", {}),
    ],
)
def test_sparse_layers(kind: str, changes: dict[str, Any]) -> None:
    spec, shapes = built(kind, **changes)
    for layer in range(3):
        sparse = any(f"layers.{layer}.mlp.experts" in name for name in shapes)
        assert spec.is_sparse(layer) == sparse
    assert one(shapes, r"experts\.gate_up_proj$")[0] == spec.num_experts
    if spec.shared_expert_intermediate_size:
        shared = one(shapes, r"shared_experts?\.up_proj")
        assert shared == (spec.shared_expert_intermediate_size, spec.hidden_size)
    assert spec.shared_expert_gate == any("shared_expert_gate" in name for name in shapes)
    assert spec.router_bias == any(name.endswith("router.bias") for name in shapes)


def test_albert_shares_its_blocks() -> None:
    spec, shapes = built("albert", num_hidden_groups=3, inner_group_num=2)
    blocks = [name for name in shapes if name.endswith("full_layer_layer_norm.weight")]
    assert len(blocks) == spec.num_hidden_groups * spec.inner_group_num == 6


def test_deberta_tables() -> None:
    spec, shapes = built("deberta-v2", relative_attention=True, position_buckets=32)
    assert one(shapes, "rel_embeddings")[0] == spec.relative_attention_num_buckets == 64
    spec, shapes = built("deberta-v2", relative_attention=True, position_biased_input=False)
    assert one(shapes, "rel_embeddings")[0] == spec.relative_attention_num_buckets == 1024
    assert spec.position_embedding_rows == 0


def test_marian_with_two_vocabularies() -> None:
    spec, shapes = built("marian", share_encoder_decoder_embeddings=False, decoder_vocab_size=80)
    assert one(shapes, "decoder.embed_tokens")[0] == spec.decoder_vocab_size == 80
    assert built("marian")[0].decoder_vocab_size == 0
