"""Small real fine-tunes beside what a calibrated plan says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vram_plan.bench.calibrate.clock import Clock
from vram_plan.bench.calibrate.reference import measured_step
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.machine import Machine

__all__ = ["FINE_TUNES", "Checked", "check"]

_BASE = {"vocab_size": 3000, "num_attention_heads": 4}
_LLAMA = {"model_type": "llama", "num_key_value_heads": 2, **_BASE}
_DRY = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_GPT2 = {"model_type": "gpt2", "n_head": 4, "vocab_size": 3000, "n_positions": 512, **_DRY}
FINE_TUNES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama full": (
        {**_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
        {"seq_len": 256},
    ),
    "llama lora": (
        {**_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
        {"seq_len": 256, "method": "lora", "lora_rank": 8},
    ),
    "llama checkpointed": (
        {**_LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
        {"seq_len": 256, "checkpointing": "full"},
    ),
    "llama wide": (
        {**_LLAMA, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 2},
        {"seq_len": 128, "micro_batch": 4},
    ),
    "llama deep": (
        {**_LLAMA, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 10},
        {"seq_len": 64},
    ),
    "llama accumulating": (
        {**_LLAMA, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4},
        {"seq_len": 128, "grad_accum": 4},
    ),
    "qwen2 full": (
        {
            **_LLAMA,
            "model_type": "qwen2",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 3,
        },
        {"seq_len": 192},
    ),
    "gemma2 lora": (
        {
            **_LLAMA,
            "model_type": "gemma2",
            "head_dim": 64,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
        },
        {"seq_len": 128, "method": "lora"},
    ),
    "gpt2 full": ({**_GPT2, "n_embd": 256, "n_layer": 4}, {"seq_len": 256}),
    "gpt2 bitfit": ({**_GPT2, "n_embd": 320, "n_layer": 3}, {"seq_len": 256, "method": "bitfit"}),
    "opt full": (
        {
            **_BASE,
            "model_type": "opt",
            "dropout": 0.0,
            "hidden_size": 256,
            "word_embed_proj_dim": 256,
            "ffn_dim": 1024,
            "num_hidden_layers": 4,
            "max_position_embeddings": 512,
        },
        {"seq_len": 128, "micro_batch": 4},
    ),
    "gpt_neox dora": (
        {
            **_BASE,
            "model_type": "gpt_neox",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
        },
        {"seq_len": 128, "method": "dora"},
    ),
}
"""Name → fields of the model and options of the plan; none is a reference step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Seconds of a step, measured and predicted."""

    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


def check(machine: Machine, device: str) -> Iterator[Checked]:
    """Run the fine-tunes and predict each."""
    clock = Clock(device)
    for name, (fields, options) in FINE_TUNES.items():
        step = measured_step(fields, options, clock)
        found = step_time(replace(step.config, gpu=machine.gpu), machine.curves)
        assert found is not None
        yield Checked(name=name, measured=step.seconds, predicted=found.seconds)
