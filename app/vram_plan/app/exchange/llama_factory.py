"""LLaMA-Factory's YAML: hiyouga/LLaMA-Factory @ ff6d4d12eeb035d6ce06805a5733dd7b29f2ac30.

``src/llamafactory/hparams/*.py`` (fields and defaults), ``model/adapter.py`` (trainable weights are
cast to fp32 unless ``pure_bf16``), ``model/model_utils/checkpointing.py`` (on unless disabled),
``model/model_utils/quantization.py``. FSDP is set up by Accelerate's file, as its examples do.
"""

from __future__ import annotations

from typing import Any

from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import CannotSayError, Reading, Weight
from vram_plan.app.exchange.peft_config import saved_modules, saved_names, target_modules
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.training_arguments import arguments, read_arguments
from vram_plan.app.exchange.words import BNB_BITS, need_trainer, regime
from vram_plan.app.exchange.yaml_text import yaml_text
from vram_plan.estimator.config import TrainConfig

FORM = "LLaMA-Factory"
FILE = "llama_factory.yaml"
_STAGES = {"pt": "pretrain", "sft": "sft"}
_METHODS = {"lora": "lora", "freeze": "freeze", "full": "full"}
_ATTENTIONS = {"fa2": "flash", "fa3": "flash", "sdpa": "sdpa", "disabled": "eager", "auto": None}
_ATTENTION_NAMES = {"flash": "fa2", "sdpa": "sdpa", "eager": "disabled"}
_ALL_KERNELS = ("rmsnorm", "rope", "swiglu")
"""What ``enable_liger_kernel`` patches beside the loss (``model_utils/liger_kernel.py``)."""


def read(document: Document) -> Reading:
    """What a LLaMA-Factory file says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    reader = Reader(document, FORM, "llama_factory")
    read_arguments(reader)
    reader.state("model", reader.text("model_name_or_path"), "model_name_or_path")
    stage = reader.text("stage") or "sft"
    if stage not in _STAGES:
        raise reader.wrong(
            ("stage",), "must be pt or sft; preference training is not planned", stage
        )
    reader.state("task", _STAGES[stage], "stage")
    reader.state("seq_len", reader.whole("cutoff_len"), "cutoff_len")
    reader.imply("seq_len", 2048, "cutoff_len")
    _read_method(reader)
    _read_checkpointing(reader)
    _read_precision(reader)
    _read_kernels(reader)
    if reader.flag("use_muon"):
        reader.state("optimizer", "muon", "use_muon", weight=Weight.OVERRIDING)
    reader.imply("micro_batch", 8, "per_device_train_batch_size")
    reader.imply("grad_accum", 1, "gradient_accumulation_steps")
    reader.imply("optimizer", "adamw-fused", "optim")
    return reader.finish()


def _read_method(reader: Reader) -> None:
    kind = reader.word(_METHODS, "finetuning_type") or "lora"
    bits = reader.whole("quantization_bit")
    if bits is not None:
        names = {"nf4": "nf4", "fp4": "fp4"}
        four = reader.word(names, "quantization_type") or "nf4"
        if bits not in {4, 8} or (reader.text("quantization_method") or "bnb").lower() != "bnb":
            raise reader.wrong(("quantization_bit",), "must be 4 or 8 by bitsandbytes", bits)
        reader.state("quantization", four if bits == 4 else "int8", "quantization_bit")
        # nothing is cast to fp32 but what learns
        reader.state("kbit_preparation", False, "quantization_bit", weight=Weight.OFF)
        if bits == 4:
            double = reader.flag("double_quantization")
            reader.state("double_quant", double is not False, "quantization_bit")
    for key in ("quantization_type", "double_quantization", "quantization_method"):
        reader.get(key)
    if kind == "freeze":
        _read_freeze(reader)
    if kind == "lora":
        _read_lora(reader)
        return
    reader.state("method", kind, "finetuning_type")


def _read_lora(reader: Reader) -> None:
    method = "rslora" if reader.flag("use_rslora") else "lora"
    reader.state("method", "dora" if reader.flag("use_dora") else method, "finetuning_type")
    reader.imply("method", "lora", "finetuning_type")
    reader.state("lora_rank", reader.whole("lora_rank") or 8, "lora_rank")
    reader.state("lora_dropout", reader.share("lora_dropout") or 0.0, "lora_dropout")
    names = reader.names("lora_target") or ["all"]
    targets = "all-linear" if names == ["all"] else ",".join(names)
    reader.state("lora_targets", targets, "lora_target")
    saved_modules(reader, "additional_target")


def _read_freeze(reader: Reader) -> None:
    """The last blocks learn; norm and head only where they are named as extra modules."""
    count = reader.whole("freeze_trainable_layers")
    reader.state("learning_layers", 2 if count is None else count, "freeze_trainable_layers")
    if not reader.names("freeze_extra_modules"):
        text = "is empty, so norm and head are frozen; the plan has them learn"
        reader.warn(("freeze_extra_modules",), text)


def _read_checkpointing(reader: Reader) -> None:
    off = reader.flag("disable_gradient_checkpointing")
    if off:
        key = "disable_gradient_checkpointing"  # FSDP's own may be on in Accelerate's file
        reader.state("checkpointing", "none", key, weight=Weight.OFF)
        return
    if reader.flag("use_unsloth_gc"):
        reader.state("checkpointing", "offload", "use_unsloth_gc")
        return
    key = "disable_gradient_checkpointing"
    reader.state("checkpointing", "full", key)
    if reader.flag("use_reentrant_gc") is not False:
        reader.warn(("use_reentrant_gc",), "true (LLaMA-Factory's default) is not planned")


def _read_precision(reader: Reader) -> None:
    pure = reader.flag("pure_bf16")
    mixed = next((key for key in ("bf16", "fp16") if reader.flag(key)), None)
    whole = (reader.text("finetuning_type") or "lora") in {"full", "freeze"}
    if pure:
        reader.state("mixed_precision", "no", "pure_bf16", weight=Weight.OFF)
        reader.state("model_dtype", "bf16", "pure_bf16")
    elif mixed:
        reader.state("mixed_precision", mixed, mixed)
        reader.state("model_dtype", "fp32" if whole else mixed, mixed)
    else:
        reader.imply("mixed_precision", "no", "bf16")
        if whole:
            reader.imply("model_dtype", "fp32", "bf16")


def _read_kernels(reader: Reader) -> None:
    reader.state("attention", reader.word(_ATTENTIONS, "flash_attn"), "flash_attn")
    reader.imply("attention", "sdpa", "flash_attn")
    if reader.flag("enable_liger_kernel"):
        reader.state("loss", "liger", "enable_liger_kernel")
        reader.state("fused_kernels", _ALL_KERNELS, "enable_liger_kernel")


def write(config: TrainConfig) -> str:
    """The file for a configuration, with LLaMA-Factory's own example as data.

    Raises:
        CannotSayError: names the option that LLaMA-Factory has no word for.
    """
    need_trainer(config, FORM)
    _refuse(config)
    found: dict[str, Any] = {
        "model_name_or_path": config.model.name,
        "stage": "pt" if config.task == "pretrain" else "sft",
        "do_train": True,
        "finetuning_type": config.method if config.method in {"full", "freeze"} else "lora",
        "dataset": "identity",
        "template": "default",
        "cutoff_len": config.seq_len,
        "flash_attn": _ATTENTION_NAMES[config.attention],
        "overwrite_output_dir": True,
    }
    found |= arguments(config)
    found.pop("liger_kernel_config", None)
    if found.pop("use_liger_kernel", False) and config.loss == "liger":
        found["enable_liger_kernel"] = True
    found |= _precision(config) | _method(config) | _checkpointing(config, found)
    if config.optimizer == "muon" and config.engine != "deepspeed":
        found["use_muon"] = True
    return yaml_text(found)


def _refuse(config: TrainConfig) -> None:
    if config.method not in {"full", "freeze", "lora", "rslora", "dora", "qlora"}:
        raise CannotSayError(f"{FORM} has no --method {config.method}")
    if config.quantization.startswith("gptq"):
        raise CannotSayError(
            f"{FORM} takes --quantization {config.quantization} from a checkpoint only"
        )
    if config.engine == "device-map":
        raise CannotSayError(f"{FORM} has no --engine device-map")
    if not config.model.is_causal or config.model.is_encoder_decoder:
        raise CannotSayError(f"{FORM} trains decoders, not {config.model.model_type}")
    if config.offload == "activations":
        raise CannotSayError(f"{FORM} has no --offload activations")


def _precision(config: TrainConfig) -> dict[str, Any]:
    mixed, dtype = regime(config)
    if mixed == "fp8":
        raise CannotSayError(f"{FORM} is not written for --precision fp8")
    pure = mixed == "no" and dtype == "bf16"
    return {"bf16": mixed == "bf16", "fp16": mixed == "fp16"} | (
        {"pure_bf16": True} if pure else {}
    )


def _method(config: TrainConfig) -> dict[str, Any]:
    if config.method == "full":
        return {}
    if config.method == "freeze":
        return {
            "freeze_trainable_layers": config.model.num_blocks - config.freeze_layers,
            "freeze_extra_modules": "norm,lm_head",
        }
    targets = target_modules(config)
    found: dict[str, Any] = {
        "lora_rank": config.lora_rank,
        "lora_alpha": 2 * config.lora_rank,
        "lora_dropout": config.lora_dropout,
        "lora_target": "all" if isinstance(targets, str) else ",".join(targets),
    }
    for method, key in (("rslora", "use_rslora"), ("dora", "use_dora")):
        if config.method == method:
            found[key] = True
    if config.modules_to_save:
        found["additional_target"] = ",".join(saved_names(config))
    if config.quantization != "none":
        found["quantization_bit"] = BNB_BITS[config.quantization]
        if found["quantization_bit"] == 4:
            found["quantization_type"] = config.quantization
            found["double_quantization"] = config.double_quant
    return found


def _checkpointing(config: TrainConfig, found: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory checkpoints unless told not to; its switches come instead of the Trainer's."""
    found.pop("gradient_checkpointing", None)
    sharded = config.engine in {"fsdp1", "fsdp2"}
    if config.checkpointing == "none" or sharded:  # Accelerate's file says FSDP's own
        return {"disable_gradient_checkpointing": True}
    if config.checkpointing == "offload":
        return {"use_unsloth_gc": True, "use_reentrant_gc": False}
    return {"use_reentrant_gc": False}
