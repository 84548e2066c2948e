"""Which modules a method changes: names, as PEFT 0.21.2 matches them, and its tables."""

ALL_LINEAR = "all-linear"
ATTENTION = "attention"
_ATTENTION_PARTS = ("attn", "attention")


def matches(name: str, targets: str) -> bool:
    """Whether the linear layer ``name`` is a target.

    ``all-linear`` is every linear layer but the output head (which never asks); ``attention``
    those inside attention modules; else names or path endings separated by commas, compared as
    ``check_target_module_exists`` of ``peft/tuners/tuners_utils.py`` does.
    """
    if targets == ALL_LINEAR:
        return True
    if targets == ATTENTION:
        return any(part in name.lower() for part in _ATTENTION_PARTS)
    return any(f".{name}".endswith(f".{target.strip()}") for target in targets.split(","))


IA3 = {
    "bart": ("q_proj,v_proj,fc2", "fc2"),
    "bert": ("key,value,output.dense", "output.dense"),
    "bloom": ("query_key_value,mlp.dense_4h_to_h", "mlp.dense_4h_to_h"),
    "deberta": ("in_proj,output.dense", "output.dense"),
    "deberta-v2": ("key_proj,value_proj,output.dense", "output.dense"),
    "falcon": ("query_key_value,dense_4h_to_h", "dense_4h_to_h"),
    "gemma": ("q_proj,v_proj,down_proj", "down_proj"),
    "gemma2": ("q_proj,v_proj,down_proj", "down_proj"),
    "gemma3_text": ("q_proj,v_proj,down_proj", "down_proj"),
    "gpt2": ("c_attn,mlp.c_proj", "mlp.c_proj"),
    "gpt_bigcode": ("c_attn,mlp.c_proj", "mlp.c_proj"),
    "gpt_neo": ("q_proj,v_proj,c_proj", "c_proj"),
    "gpt_neox": ("query_key_value,dense_4h_to_h", "dense_4h_to_h"),
    "gptj": ("q_proj,v_proj,fc_out", "fc_out"),
    "llama": ("k_proj,v_proj,down_proj", "down_proj"),
    "mistral": ("k_proj,v_proj,down_proj", "down_proj"),
    "mixtral": ("k_proj,v_proj,w2", "w2"),
    "mt5": ("k,v,wi_1", ""),
    "opt": ("q_proj,k_proj,fc2", "fc2"),
    "phi": ("q_proj,v_proj,fc2", "fc2"),
    "qwen2": ("q_proj,v_proj,down_proj", "down_proj"),
    "qwen3": ("q_proj,v_proj,down_proj", "down_proj"),
    "roberta": ("key,value,output.dense", "output.dense"),
    "t5": ("k,v,wo", "wo"),
}
"""``model_type`` → targets and, among them, those whose input is scaled.

``peft/utils/constants.py``, ``TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING`` and
``TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING``, PEFT 0.21.2. The experts of newer
Mixtral classes are one tensor, so ``w2`` matches nothing there.
"""


def is_feedforward(name: str, endings: str) -> bool:
    """Whether IA³ scales the input of ``name`` (PEFT compares endings without a dot)."""
    return any(name.endswith(ending) for ending in endings.split(",") if ending)


QUERY_VALUE = {
    **dict.fromkeys(
        (
            "bart",
            "gemma",
            "gemma2",
            "gemma3_text",
            "gpt_neo",
            "gptj",
            "llama",
            "mistral",
            "mixtral",
            "opt",
            "phi",
            "qwen2",
            "qwen3",
            "stablelm",
        ),
        "q_proj,v_proj",
    ),
    **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), "query,value"),
    **dict.fromkeys(("bloom", "chatglm", "falcon", "gpt_neox"), "query_key_value"),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), "c_attn"),
    **dict.fromkeys(("mt5", "t5"), "q,v"),
    "codegen": "qkv_proj",
    "deberta": "in_proj",
    "deberta-v2": "query_proj,value_proj",
    "mpt": "Wqkv",
}
"""``model_type`` → the layers that project queries and values.

``TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING``, ``peft/utils/constants.py``, PEFT 0.21.2
(without the feed-forward layers it adds for Phi).
"""
