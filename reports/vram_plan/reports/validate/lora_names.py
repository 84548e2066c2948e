"""The layers that a row's ``lora_targets`` mean in a model's class.

Rows say ``q,k,v,o``; transformers names the layers after the architecture: the module names are
those of its ``modeling_*.py`` (5.23.0), one fused projection standing for all its parts.
"""

from __future__ import annotations

from vram_plan.profiles.measured_row import Row
from vram_plan.profiles.model import ModelSpec

_LLAMA = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "mlp": "gate_proj,up_proj,down_proj",
}
_LITGPT = _LLAMA | {"mlp": "gate_proj,up_proj,down_proj,mlp.fc,mlp.proj"}
"""lit-gpt builds every architecture of one kind of block, with a switch for each part of the fused
projection (``lit_gpt/lora.py`` ``to_query`` and its like); the plan's names for them."""
_FUSED_DENSE = {
    "qkv": "query_key_value",
    "o": "dense",
    "mlp": "dense_h_to_4h,dense_4h_to_h",
}
_NAMES: dict[str, dict[str, str]] = {
    "gpt_bigcode": {"qkv": "c_attn", "o": "attn.c_proj", "mlp": "c_fc,mlp.c_proj"},
    "gpt2": {"qkv": "c_attn", "o": "attn.c_proj", "mlp": "c_fc,mlp.c_proj"},
    "qwen": {"qkv": "c_attn", "o": "attn.c_proj", "mlp": "w1,w2,mlp.c_proj"},
    "phi": _LLAMA | {"o": "dense", "mlp": "fc1,fc2"},
    "starcoder2": _LLAMA | {"mlp": "c_fc,c_proj"},
    "phi3": {"qkv": "qkv_proj", "o": "o_proj", "mlp": "gate_up_proj,down_proj"},
    "falcon": _FUSED_DENSE,
    "bloom": _FUSED_DENSE,
    "gpt_neox": _FUSED_DENSE,
    "chatglm": _FUSED_DENSE,
    "chatglm1": _FUSED_DENSE,
    "baichuan": {"qkv": "W_pack", "o": "o_proj", "mlp": "gate_proj,up_proj,down_proj"},
    "internlm2": {"qkv": "wqkv", "o": "wo", "mlp": "w1,w2,w3"},
    "mpt": {"qkv": "Wqkv", "o": "out_proj", "mlp": "up_proj,down_proj"},
    "bert": {"q": "query", "k": "key", "v": "value", "o": "attention.output.dense"},
    "t5": {"q": "q", "k": "k", "v": "v", "o": "o", "mlp": "wi,wi_0,wi_1,wo"},
}
_WHOLE = ("all-linear", "attention")


def lora_targets(row: Row, model: ModelSpec) -> str:
    """``lora_targets`` in the names of the model's class.

    Raises:
        ValueError: when they are not stated, or name something else than linear layers.
    """
    stated = row.lora_targets
    if stated is None:
        raise ValueError("LoRA targets are not stated")
    if stated in _WHOLE:
        return stated
    names = _NAMES.get(model.model_type, _LLAMA)
    if row.trainer == "litgpt":
        names = _LITGPT
    found: list[str] = []
    for part in stated.split(","):
        name = _name(part.strip(), names)
        if name is None:
            raise ValueError(f"LoRA targets {stated!r}: {part} of {model.model_type} is not known")
        if name not in found:
            found.append(name)
    return ",".join(found)


def _name(part: str, names: dict[str, str]) -> str | None:
    if part in names:
        return names[part]
    if part in {"q", "k", "v"}:
        return names.get("qkv")
    if part == "qkv" and "q" in names:
        return ",".join(names[one] for one in "qkv")
    return None
