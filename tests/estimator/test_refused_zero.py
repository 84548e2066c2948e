"""What DeepSpeed does not run is refused by name."""

from typing import Any

import pytest

from vram_plan.estimator import plan
from vram_plan.profiles.hf_config import from_hf_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 256,
}
BART: dict[str, Any] = {
    "model_type": "bart",
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 256,
}
HALF = {"precision": "fp16", "checkpointing": "full"}


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (LLAMA, {"method": "adalora", "checkpointing": "selective"}, "choose --checkpointing full"),
        (BART, {"method": "lora", **HALF}, "bart's checkpoints .*choose --precision bf16"),
        (LLAMA, {"offload": "optimizer", "optimizer": "sgd"}, "DeepSpeedCPUAdam"),
    ],
)
def test_refused(fields: dict[str, Any], options: dict[str, Any], message: str) -> None:
    """One line that names the options and the way out."""
    model = from_hf_config(fields, name="toy")
    with pytest.raises(ValueError, match=message) as raised:
        plan(model, zero=3, gpus=2, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        (LLAMA, {"method": "lora", "checkpointing": "selective"}),
        (BART, {"method": "full", **HALF}),
        (BART, {"method": "lora", "precision": "bf16", "checkpointing": "full"}),
    ],
)
def test_others_are_planned(fields: dict[str, Any], options: dict[str, Any]) -> None:
    """Neighbours of what is refused."""
    model = from_hf_config(fields, name="toy")
    assert plan(model, zero=3, gpus=2, **options).memory.allocated_bytes
