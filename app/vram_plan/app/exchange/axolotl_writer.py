"""The axolotl file for a configuration; what its keys mean is in ``axolotl.py``."""

from __future__ import annotations

from typing import Any

from vram_plan.app.exchange.deepspeed import FILE as DS_FILE
from vram_plan.app.exchange.facts import CannotSayError
from vram_plan.app.exchange.fsdp import SECTION, fsdp_section
from vram_plan.app.exchange.peft_config import saved_names, target_modules
from vram_plan.app.exchange.words import (
    ATTENTION_NAMES,
    OPTIMIZER_NAMES,
    need_trainer,
    regime,
)
from vram_plan.app.exchange.yaml_text import yaml_text
from vram_plan.estimator.config import TrainConfig

FORM = "axolotl"
FILE = "axolotl.yaml"
LIGER_PLUGIN = "axolotl.integrations.liger.LigerPlugin"
LIGER = {
    "liger_rope": "rope",
    "liger_rms_norm": "rmsnorm",
    "liger_glu_activation": "swiglu",
    "liger_swiglu": "swiglu",
}
LOSSES = {
    "liger_fused_linear_cross_entropy": "liger",
    "liger_cross_entropy": "fused-ce",
}
_METHODS = ("full", "lora", "rslora", "dora", "qlora")


def write(config: TrainConfig) -> str:
    """The file for a configuration, with a data set to put one's own in.

    Raises:
        CannotSayError: names the option that axolotl has no word for.
    """
    need_trainer(config, FORM)
    _refuse(config)
    found: dict[str, Any] = {
        "base_model": config.model.name,
        "datasets": [{"path": "data.jsonl", "type": _kind(config)}],
        "dataset_prepared_path": "prepared",
        "output_dir": "out",
        "sequence_len": config.seq_len,
        "sample_packing": False,
        "micro_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.grad_accum,
        "num_epochs": 1,
        "learning_rate": 0.0002,
    }
    found |= _precision(config) | _adapter(config)
    optimizer = "muon" if config.optimizer == "muon" else OPTIMIZER_NAMES.get(config.optimizer)
    if optimizer:
        found["optimizer"] = optimizer
    found["gradient_checkpointing"] = _CHECKPOINTING.get(config.checkpointing, True)
    if config.offload == "activations":
        found["activation_offloading"] = True
    if config.compile:
        found["torch_compile"] = True
    found["attn_implementation"] = ATTENTION_NAMES[config.attention]
    return yaml_text(found | _liger(config) | _sharding(config))


_CHECKPOINTING: dict[str, bool | str] = {"none": False, "full": True, "offload": "offload"}


def _refuse(config: TrainConfig) -> None:
    if config.method not in _METHODS:
        raise CannotSayError(f"{FORM} has no --method {config.method}")
    if config.quantization in {"fp4", "gptq8"}:
        raise CannotSayError(f"{FORM} has no --quantization {config.quantization}")
    if config.method == "qlora" and config.quantization != "nf4":
        raise CannotSayError(f"{FORM} has qlora over nf4 only")
    if config.quantization == "nf4" and config.method not in {"qlora"}:
        raise CannotSayError(f"{FORM} has nf4 under --method qlora only")
    if not config.model.is_causal or config.model.is_encoder_decoder:
        raise CannotSayError(f"{FORM} trains decoders, not {config.model.model_type}")
    if config.engine == "device-map":
        raise CannotSayError(f"{FORM} has no --engine device-map")


def _kind(config: TrainConfig) -> str:
    return "completion" if config.task == "pretrain" else "alpaca"


def _precision(config: TrainConfig) -> dict[str, Any]:
    mixed, dtype = regime(config)
    if mixed == "fp8":
        raise CannotSayError(f"{FORM} is not written for --precision fp8")
    found: dict[str, Any] = {"bf16": mixed == "bf16", "fp16": mixed == "fp16", "tf32": False}
    if mixed == "no" and dtype != "fp32":
        found["bfloat16" if dtype == "bf16" else "float16"] = True
    return found


def _adapter(config: TrainConfig) -> dict[str, Any]:
    if config.method == "full":
        return {}
    found: dict[str, Any] = {
        "adapter": "qlora" if config.method == "qlora" else "lora",
        "load_in_8bit": config.quantization == "int8",
        "load_in_4bit": config.quantization == "nf4",
        "lora_r": config.lora_rank,
        "lora_alpha": 2 * config.lora_rank,
        "lora_dropout": config.lora_dropout,
    }
    targets = target_modules(config)
    if isinstance(targets, str):
        found["lora_target_linear"] = True
    else:
        found["lora_target_modules"] = targets
    if config.modules_to_save:
        found["lora_modules_to_save"] = saved_names(config)
    if config.quantization == "gptq4":
        found["gptq"] = True
    for method, key in (("rslora", "peft_use_rslora"), ("dora", "peft_use_dora")):
        if config.method == method:
            found[key] = True
    if config.adapter_dtype != "fp32":
        found["peft_autocast_adapter_dtype"] = False
    return found


def _liger(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: True
        for key, name in LIGER.items()
        if name in config.fused_kernels and key != "liger_swiglu"
    }
    found |= {key: True for key, loss in LOSSES.items() if loss == config.loss}
    if any(key.startswith("liger") for key in found):
        found["plugins"] = [LIGER_PLUGIN]
    return found


def _sharding(config: TrainConfig) -> dict[str, Any]:
    if config.engine == "deepspeed":
        return {"deepspeed": DS_FILE}
    if config.engine not in {"fsdp1", "fsdp2"}:
        return {}
    section = fsdp_section(config, offload="offload_params")
    section["reshard_after_forward"] = config.fsdp != "grad-op"
    found: dict[str, Any] = {"fsdp_version": section.pop("version"), SECTION: section}
    if section["activation_checkpointing"]:
        found["gradient_checkpointing"] = False  # FSDP's own recomputes
    return found | _mesh(config)


def _mesh(config: TrainConfig) -> dict[str, int]:
    """Sizes of the device mesh, which axolotl hands to Accelerate."""
    if config.sequence_parallel:
        raise CannotSayError(f"{FORM} has no --sequence-parallel")
    sizes = {"tensor_parallel_size": config.tp, "context_parallel_size": config.cp}
    found = {key: size for key, size in sizes.items() if size > 1}
    if config.fsdp == "hybrid-shard":
        if config.engine == "fsdp1":
            raise CannotSayError(f"{FORM} has no --fsdp hybrid-shard under FSDP 1")
        found["dp_replicate_size"] = config.gpus // config.gpus_per_node
        found["dp_shard_size"] = config.gpus_per_node // (config.tp * config.cp)
    return found
