"""One small model of every family in the catalogue: forward, backward and step."""

from typing import Any

import pytest

from vram_plan.bench.trace import TraceConfig, trace_step
from vram_plan.profiles.hf_config import CUSTOM_TYPES
from vram_plan.profiles.models import CatalogueEntry, catalogue

#: A small model's sizes, by the names configurations use.
SMALL: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 128),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim"), 256),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 256),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("embedding_size", "q_lora_rank", "kv_lora_rank"), 64),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "sliding_window", "window_size"), 16),
    "num_experts_per_tok": 2,
    "sliding_window_pattern": 2,
    "vocab_size": 1000,
}
#: Items of lists with one for every layer.
LISTS: dict[str, Any] = {
    "layer_types": 2,
    "mlp_layer_types": 2,
    "attention_types": [[["global", "local"], 1]],
}
NESTED = {
    "attn_config": {"kv_n_heads": 2},
    "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2},
}


def representatives() -> dict[str, CatalogueEntry]:
    """Model type → the first model of that type."""
    found: dict[str, CatalogueEntry] = {}
    for entry in catalogue():
        found.setdefault(entry.config["model_type"], entry)
    return found


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The same structure with small sizes."""
    known = {name: value for name, value in config.items() if value is not None}
    fields = {"pad_token_id": 0} | {name: _size(name, value) for name, value in known.items()}
    heads = config.get("num_key_value_heads")
    if heads is not None:
        fields["num_key_value_heads"] = _fewer(heads, config["num_attention_heads"])
    for name, values in NESTED.items():
        if isinstance(fields.get(name), dict):
            fields[name] |= {key: value for key, value in values.items() if key in fields[name]}
    return fields


def _size(name: str, value: Any) -> Any:
    if name in SMALL and isinstance(value, int):
        return SMALL[name]
    if name in LISTS:
        return LISTS[name] if name == "attention_types" else value[: LISTS[name]]
    if name.endswith("_token_id"):
        return min(value, SMALL["vocab_size"] - 1)
    return dict(value) if isinstance(value, dict) else value


def _fewer(kv_heads: int, heads: int) -> int:
    if kv_heads in (1, heads):
        return 4 if kv_heads == heads else 1
    return 2


FAMILIES = [kind for kind in representatives() if kind not in CUSTOM_TYPES]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family: str) -> None:
    shape = small(representatives()[family].config)
    trace = trace_step(TraceConfig(config=shape, seq=32, attention="eager", dtype="bf16"))
    assert trace.phases == ("forward", "loss", "backward", "clip", "step", "zero_grad")
    assert sum(trace.components().values()) == trace.peak_bytes
    parts = trace.components("step")
    assert parts["optimizer_states"] == pytest.approx(2 * parts["gradients"], rel=1e-3)
    assert trace.events[-1].live == trace.start_bytes  # the step leaves what it found


def test_families_without_a_class_are_known() -> None:
    """These models' code is on the hub alone, so the dry run cannot build them."""
    assert set(representatives()) - set(FAMILIES) == {
        "baichuan",
        "chatglm",
        "internlm",
        "internlm2",
        "qwen",
    }


@pytest.mark.parametrize(
    ("family", "attention", "message"),
    [
        ("mpt", "sdpa", "no attention sdpa for mpt: choose attention eager"),
        ("bloom", "flash", "BloomForCausalLM does not support flash attention"),
        ("gpt_oss", "flash", "no attention flash for gpt_oss"),
    ],
)
def test_attention_that_the_library_has_not(family: str, attention: str, message: str) -> None:
    shape = small(representatives()[family].config)
    with pytest.raises(ValueError, match=message):
        trace_step(TraceConfig(config=shape, seq=32, attention=attention))
