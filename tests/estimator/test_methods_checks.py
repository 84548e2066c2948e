"""Methods that a library refuses on a model are refused in one line that names the way out."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator.choices import METHODS
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.methods.experts import targeted
from vram_plan.estimator.methods.registry import check_method, make_method
from vram_plan.profiles.hf_config import from_hf_config

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 96,
}
DECODER = {"model_type": "llama", "num_key_value_heads": 2, **SMALL}
POSITIONS = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 96,
}
SPARSE = {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 2, **SMALL}


def config(fields: dict[str, Any], **options: Any) -> TrainConfig:
    """A configuration of a small model."""
    return TrainConfig(model=from_hf_config(fields, name="small", source="test"), **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_made_and_accepted(method: str) -> None:
    """Every word of ``--method`` has its object, and Llama takes them all."""
    accepted = config(DECODER, method=method, seq_len=128)
    check_method(accepted)
    made = make_method(accepted)
    assert made == make_method(accepted)
    assert hash(made) == hash(make_method(accepted))


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (
            {"model_type": "olmo", **SMALL},
            {"method": "ia3"},
            "--method ia3: .*choose --method lora",
        ),
        (POSITIONS, {"method": "prompt", "seq_len": 60}, "--virtual-tokens 20 .*64 positions"),
        (POSITIONS, {"method": "prefix", "seq_len": 60}, "choose --seq-len 44"),
        (
            DECODER,
            {"method": "prefix", "checkpointing": "full"},
            "--method prefix with --checkpointing full",
        ),
        (
            {"model_type": "falcon", "multi_query": True, **SMALL},
            {"method": "p-tuning-v2"},
            "--method p-tuning-v2: .*one key",
        ),
        (
            DECODER,
            {"method": "ia3", "quantization": "nf4", "kbit_preparation": True, "engine": "fsdp2"},
            "--method ia3 with --quantization nf4 .*choose --quantization none",
        ),
        (
            {"model_type": "bloom", **SMALL},
            {"method": "ia3", "quantization": "int8", "kbit_preparation": False},
            "--method ia3 with --quantization int8 .*leave --kbit-preparation on",
        ),
        (SPARSE, {"method": "dora"}, "--method dora: .*--lora-targets attention"),
        (SPARSE, {"method": "lora", "lora_targets": "w1"}, "w1 and w3 are one weight"),
    ],
)
def test_refusals_name_the_option_and_the_way_out(
    fields: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """One line each."""
    with pytest.raises(ValueError, match=message) as raised:
        check_method(config(fields, **options))
    assert "\n" not in str(raised.value)


def test_former_names_select_stacked_weights() -> None:
    """Names of transformers 4 stand for the tensors that replaced them."""
    assert targeted("mixtral", "w1,w2,w3") == {"gate_up_proj", "down_proj"}
    assert targeted("qwen3_moe", "all-linear") == {"gate_up_proj", "down_proj", "gate.weight"}
    assert targeted("qwen3_moe", "q_proj,v_proj") == frozenset()
    assert targeted("llama", "all-linear") == frozenset()
