"""transformers' TrainingArguments (5.23.0 ``training_args.py``), with TRL's model arguments.

People keep both in one YAML (``trl sft --config``); two files are written, since transformers'
parser takes the fields of one class only: ``training_args.yaml`` for TrainingArguments itself and
``model_args.yaml`` for the ModelArguments of the exported ``train.py``, whose names are TRL's
(huggingface/trl @ f2cd57710ae345ea6428ae95363267fcf38a3dc8 ``trl/trainer/model_config.py``).
"""

from __future__ import annotations

from typing import Any

from vram_plan.app.exchange import model_arguments
from vram_plan.app.exchange.deepspeed import FILE as DS_FILE
from vram_plan.app.exchange.deepspeed import parse
from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import Reading, Weight
from vram_plan.app.exchange.fsdp import SECTION, fsdp_section, read_fsdp
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.words import (
    OPTIMIZER_NAMES,
    STRATEGY_WORDS,
    in_order,
    need_trainer,
    read_checkpointing,
    read_optimizer,
    regime,
)
from vram_plan.app.exchange.yaml_text import yaml_text
from vram_plan.estimator.config import TrainConfig

FORM = "TrainingArguments"
FILE = "training_args.yaml"
_LIGER = {"rope": "rope", "rms_norm": "rmsnorm", "swiglu": "swiglu"}
"""Keys of ``liger_kernel_config`` → fused kernels."""
_LINEAR, _PLAIN = "fused_linear_cross_entropy", "cross_entropy"
_TRL_MARKS = ("use_peft", "dataset_name", "dataset_mixer", "packing", "max_seq_length")


def read(document: Document) -> Reading:
    """What a file of TrainingArguments, or of TRL, says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    reader = Reader(document, FORM, "trl")
    read_arguments(reader)
    model_arguments.read_keys(reader)
    if any(document.values.get(mark) is not None for mark in _TRL_MARKS):
        _imply_trl(reader)
    elif model_arguments.MARK not in document.values:
        reader.imply("micro_batch", 8, "per_device_train_batch_size")
        reader.imply("grad_accum", 1, "gradient_accumulation_steps")
        reader.imply("optimizer", "adamw-fused", "optim")
        reader.imply("mixed_precision", "no", "bf16")
    return reader.finish()


def _imply_trl(reader: Reader) -> None:
    """Defaults of TRL's SFTConfig and ModelConfig."""
    reader.imply("micro_batch", 8, "per_device_train_batch_size")
    reader.imply("optimizer", "adamw-fused", "optim")
    reader.imply("mixed_precision", "bf16", "bf16")
    reader.imply("model_dtype", "fp32", "dtype")
    if reader.get("gradient_checkpointing") is None:
        reader.state("checkpointing", "full", "gradient_checkpointing")
    reader.imply("seq_len", 1024, "max_length")
    reader.imply("loss", "chunked", "loss_type")


def read_arguments(reader: Reader) -> None:
    """The fields of TrainingArguments that the plan knows; LLaMA-Factory has them too."""
    for option, key in (
        ("micro_batch", "per_device_train_batch_size"),
        ("grad_accum", "gradient_accumulation_steps"),
    ):
        reader.state(option, reader.whole(key), key)
    read_optimizer(reader, "optim")
    _read_mixed(reader)
    read_checkpointing(reader, "gradient_checkpointing")
    read_checkpointing(reader, "activation_checkpointing")
    for key in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if reader.section(key).get("use_reentrant") is True:
            reader.warn((key,), "use_reentrant true is not planned")
    if reader.flag("torch_compile"):
        reader.state("compile", True, "torch_compile")
    _read_liger(reader)
    read_deepspeed(reader)
    _read_fsdp(reader)


def _read_mixed(reader: Reader) -> None:
    off = None
    for key in ("bf16", "fp16"):
        on = reader.flag(key)
        if on:
            reader.state("mixed_precision", key, key)
            return
        off = key if on is False else off
    if off:
        reader.state("mixed_precision", "no", off, weight=Weight.OFF)


def _read_liger(reader: Reader) -> None:
    """Without a dictionary Liger-Kernel patches all it has, and fuses the head with the loss."""
    if not reader.flag("use_liger_kernel"):
        return
    given = reader.section("liger_kernel_config")
    fused = [name for key, name in _LIGER.items() if given.get(key, True)]
    reader.state("fused_kernels", in_order(fused), "use_liger_kernel")
    if given.get(_PLAIN):
        reader.state("loss", "fused-ce", "liger_kernel_config", _PLAIN)
    elif given.get(_LINEAR, True):
        reader.state("loss", "liger", "use_liger_kernel")


def read_deepspeed(reader: Reader) -> None:
    """The ``deepspeed`` key: a path, or DeepSpeed's keys themselves."""
    value = reader.get("deepspeed")
    if not value:
        return
    reader.state("engine", "deepspeed", "deepspeed")
    if isinstance(value, dict):
        found = parse(value, reader.document)
        reader.state("ds_config", found, "deepspeed")
        reader.state("zero", found.stage, "deepspeed")
        for option in ("offload", "offload_device"):
            reader.state(option, found.options.get(option), "deepspeed")
        return
    reader.refer("deepspeed")


def _read_fsdp(reader: Reader) -> None:
    """``fsdp: true``, or the words of 4.x: ``full_shard auto_wrap offload``."""
    value = reader.get("fsdp")
    words = " ".join(value) if isinstance(value, list) else str(value or "")
    if not words or words.lower() == "false":
        return
    config = reader.get(SECTION)
    if isinstance(config, str):
        reader.warn((SECTION,), f"{config} is not read; write its keys here")
        reader.document.values[SECTION] = {}
    prefix = "fsdp_" if any(str(key).startswith("fsdp_") for key in config or ()) else ""
    read_fsdp(reader, prefix=prefix, version=2, offload=f"{prefix}cpu_offload")
    for word in words.lower().split():
        if word in STRATEGY_WORDS:
            reader.state("fsdp", STRATEGY_WORDS[word], "fsdp")
        elif word == "offload":
            reader.state("offload", "optimizer+params", "fsdp")
        elif word not in {"true", "auto_wrap"}:
            raise reader.wrong(("fsdp",), "must be true or FSDP's words", value)


def arguments(config: TrainConfig) -> dict[str, Any]:
    """Fields for a configuration, in the order of their documentation."""
    mixed = regime(config).mixed
    found: dict[str, Any] = {
        "output_dir": "out",
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.grad_accum,
        "bf16": mixed == "bf16",
        "fp16": mixed == "fp16",
    }
    if config.optimizer in OPTIMIZER_NAMES:
        found["optim"] = OPTIMIZER_NAMES[config.optimizer]
    if config.engine not in {"fsdp1", "fsdp2"}:  # there it is said in FSDP's section
        found["gradient_checkpointing"] = config.checkpointing != "none"
    if config.compile:
        found["torch_compile"] = True
    kernels = {key: name in config.fused_kernels for key, name in _LIGER.items()}
    if config.loss in {"liger", "fused-ce"} or any(kernels.values()):
        found["use_liger_kernel"] = True
        found["liger_kernel_config"] = {
            **kernels,
            _LINEAR: config.loss == "liger",
            _PLAIN: config.loss == "fused-ce",
        }
    if config.engine == "deepspeed":
        found["deepspeed"] = DS_FILE
    return found


def write(config: TrainConfig) -> str:
    """``training_args.yaml`` for a configuration.

    Raises:
        CannotSayError: names the option that TrainingArguments has no word for.
    """
    need_trainer(config, FORM)
    found = arguments(config)
    if config.engine in {"fsdp1", "fsdp2"}:
        found["fsdp"] = True
        found[SECTION] = fsdp_section(config, offload="cpu_offload")
    found |= {"logging_steps": 1, "report_to": "none"}
    return yaml_text(found)
