"""Options that a configuration carries without any effect on its run."""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig

_PROMPTS = frozenset({"prompt", "prefix", "p-tuning", "p-tuning-v2", "mam", "unipelt"})
_ENCODERS = frozenset({"p-tuning", "mam", "unipelt"})
_BOTTLENECKS = frozenset({"mam", "unipelt"})


def idle(config: TrainConfig) -> frozenset[str]:
    """Names of options that mean nothing under this method, engine and model."""
    method = config.method
    active = {
        "lora_rank": config.is_lora or method == "unipelt",
        "lora_targets": config.is_lora,
        "lora_dropout": config.is_lora,
        "modules_to_save": config.is_lora,
        "adapter_dtype": method not in choices.WHOLE_MODEL,
        "adapter_size": method.startswith("adapter-") or method in _BOTTLENECKS,
        "freeze_layers": method == "freeze",
        "virtual_tokens": method in _PROMPTS,
        "prompt_encoder": method in _ENCODERS,
        "prompt_encoder_size": method in _ENCODERS,
        "source_len": config.model.is_encoder_decoder,
        "kv_dtype": not config.training,
        "attention_density": config.attention == "block-sparse",
        "offload_device": config.offload in {"optimizer", "optimizer+params"},
        "pp_schedule": config.pp > 1,
        "virtual_pipeline": config.pp > 1,
        "double_quant": config.quantization in choices.FOUR_BIT,
        "amp": config.autocast != replace(config, amp=None).autocast,
        "kbit_preparation": config.quantization in choices.BITSANDBYTES,
    }
    return frozenset(name for name, matters in active.items() if not matters)
