"""From a measured row to the options of a plan.

What a row does not state is left to the option's default; what the plan has no option for is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig, ZeroSizes
from vram_plan.profiles.gpus import GpuSpec, find_gpu
from vram_plan.profiles.measured_row import Row
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.nodes import find_node
from vram_plan.reports.validate.lora_names import lora_targets
from vram_plan.reports.validate.precision_of_row import precision_of_row
from vram_plan.reports.validate.source_facts import (
    DROPOUTS,
    LENGTHS,
    NODES,
    ONE_GROUP,
)
from vram_plan.reports.validate.stack_of_row import stack_of_row
from vram_plan.reports.validate.unplanned import refuse_unplanned

Options = dict[str, Any]

_FIELDS = frozenset(field.name for field in fields(TrainConfig))
_METHODS = {
    ("pretrain", None): "full",
    ("adapter", "litgpt"): "llama-adapter",
    ("adapter-v2", "litgpt"): "llama-adapter-v2",
}
"""The row's word, and the loop where its meaning is the loop's → the plan's word."""
_OPTIMIZERS = {
    "adam": "adamw",  # the same states; only the decay differs
    "adam-8bit": "adamw-8bit",
    "hybrid-adam": "adamw-fused",  # ColossalAI's: one kernel for a parameter group
}
_FUSED_ADAMW = frozenset({"torchtune"})
"""Loops whose configurations set ``fused: True`` beside ``torch.optim.AdamW`` (torchtune
``recipes/configs/llama3_2/3B_lora_single_device.yaml`` and its like)."""
_ATTENTIONS = {"xformers": "sdpa"}
"""xFormers' memory-efficient kernel is the one that SDPA dispatches to, and saves the same."""
_NAMES = {"megatron-fsdp": "megatron"}
"""Engines that are another one's with ``--fsdp``."""
_WITHOUT_KBIT_PREPARATION = frozenset({"litgpt", "torchtune", "fsdp_qlora", "torchtitan"})
"""Training loops that do not call PEFT's ``prepare_model_for_kbit_training``."""
_OBJECTIVES = frozenset({None, "lm", "mlm", "seq2seq", "classification", "regression"})
"""Objectives of one model and one pass; the head of the last two is the model's."""
_DROPOUT = re.compile(r"LoRA dropout (0?\.[0-9]+)")


def options_of_row(row: Row, model: ModelSpec) -> Options:
    """Options by command-line name with underscores.

    Raises:
        ValueError: naming what the row does not state, or the plan has no option for.
    """
    refuse_unplanned(row)
    options: Options = {}
    for take in _TAKE:
        options |= take(row, model)
    return {name: value for name, value in options.items() if value is not None}


def gpu_of_row(row: Row) -> GpuSpec | None:
    """The card of a row where the catalogue has it."""
    if row.gpu is None:
        return None
    try:
        return find_gpu(row.gpu)
    except ValueError:
        return None


def _objective(row: Row, model: ModelSpec) -> Options:
    if row.objective not in _OBJECTIVES:
        raise ValueError(f"objective {row.objective} cannot be planned")
    return {}


def _method(row: Row, model: ModelSpec) -> Options:
    if row.method is None:
        raise ValueError("the method is not stated")
    method = _METHODS.get((row.method, row.trainer)) or _METHODS.get((row.method, None), row.method)
    if method not in choices.METHODS:
        raise ValueError(f"method {row.method} cannot be planned")
    options: Options = {"method": method, "adapter_dtype": row.adapter_dtype}
    if row.modules_to_save is not None:
        _need("modules_to_save", row.modules_to_save)
        options["modules_to_save"] = row.modules_to_save
    if method in choices.LORA_FAMILY:
        options |= {"lora_rank": row.lora_rank, "lora_targets": lora_targets(row, model)}
        stated = _DROPOUT.search(row.notes or "")
        options["lora_dropout"] = float(stated[1]) if stated else DROPOUTS.get(row.trainer or "")
    return options


def _need(option: str, value: object) -> None:
    """Refuse a value whose option does not exist."""
    if option not in _FIELDS:
        raise ValueError(f"{option} {value} cannot be planned yet")


def _quantized(row: Row, model: ModelSpec) -> Options:
    if row.quantization is None:
        return {}
    if row.quantization not in choices.QUANTIZATIONS:
        raise ValueError(f"quantization {row.quantization} cannot be planned")
    options: Options = {"quantization": row.quantization, "double_quant": row.double_quant}
    if row.model in ONE_GROUP:
        options["gptq_group_size"] = -1
    if row.quantization in choices.BITSANDBYTES and _unprepared(row):
        options["kbit_preparation"] = False
    return options


def _unprepared(row: Row) -> bool:
    said = "prepared without the cast to fp32" in (row.notes or "")
    return said or row.trainer in _WITHOUT_KBIT_PREPARATION


def _optimizer(row: Row, model: ModelSpec) -> Options:
    name = _OPTIMIZERS.get(row.optimizer or "", row.optimizer)
    if name == "adamw" and row.trainer in _FUSED_ADAMW:
        name = "adamw-fused"
    if name is not None and name not in choices.OPTIMIZERS:
        raise ValueError(f"optimizer {row.optimizer} cannot be planned")
    return {"optimizer": name}


def _engine(row: Row, model: ModelSpec) -> Options:
    engine = row.engine or _engine_of(row)
    if engine == "ddp+device-map":
        engine = "device-map"
    if row.sharding == "no-shard":
        engine = "ddp"  # FSDP without shards: whole weights, gradients and states on every rank
    engine = _NAMES.get(engine, engine)
    if engine not in choices.ENGINES:
        raise ValueError(f"engine {engine} cannot be planned")
    options: Options = {"engine": engine}
    if engine == "deepspeed" and row.zero_stage is None:
        raise ValueError("the ZeRO stage is not stated")
    if engine in choices.ZERO_ENGINES:
        options["zero"] = row.zero_stage
        if engine == "megatron-deepspeed" and row.grad_dtype == "fp32":
            options["zero_sizes"] = ZeroSizes(grad_accum_bytes=4)
    if engine in {"fsdp1", "fsdp2"} or row.engine in _NAMES:
        options["fsdp"] = row.sharding
    return options


def _engine_of(row: Row) -> str:
    if row.gpus == 1 and row.zero_stage is None and row.sharding is None:
        return "torch"
    raise ValueError("the engine is not stated")


def _scale(row: Row, model: ModelSpec) -> Options:
    degrees = {
        "tp": row.tensor_parallel or 1,
        "pp": row.pipeline_parallel or 1,
        "cp": row.context_parallel or 1,
    }
    gpus = row.gpus
    if gpus is None:
        raise ValueError("the number of GPUs is not stated")
    options: Options = {"gpus": gpus, **degrees, "ep": row.expert_parallel or 1}
    if row.gpus_per_node and gpus % row.gpus_per_node == 0:
        options["gpus_per_node"] = row.gpus_per_node
    if row.engine in {"device-map", "ddp+device-map"}:
        options["pp"] = gpus // (row.data_parallel or 1)
        options["pp_schedule"] = "naive"
    if degrees["tp"] > 1 and row.sequence_parallel is not None:
        options["sequence_parallel"] = row.sequence_parallel
    options["virtual_pipeline"] = row.virtual_pipeline
    return options


def _data(row: Row, model: ModelSpec) -> Options:
    if row.micro_batch is None:
        raise ValueError("the micro-batch is not stated")
    if row.seq_len is None:
        raise ValueError("the sequence length is not stated")
    accumulation = row.grad_accum
    if accumulation is None and row.global_batch and row.data_parallel:
        accumulation = max(1, row.global_batch // (row.micro_batch * row.data_parallel))
    return {
        "micro_batch": row.micro_batch,
        "seq_len": row.seq_len,
        "grad_accum": accumulation,
        "lengths": LENGTHS.get(row.family) if row.lengths == "limit" else None,
    }


def _step(row: Row, model: ModelSpec) -> Options:
    if row.loss is not None and row.loss not in choices.LOSSES:
        raise ValueError(f"loss {row.loss} cannot be planned")
    attention = _ATTENTIONS.get(row.attention or "", row.attention)
    offload = row.offload or "none"
    if row.checkpointing == "offload" and offload == "activations":
        offload = "none"  # the checkpoints are what goes to the host
    if offload not in choices.OFFLOADS:
        raise ValueError(f"offload {offload} cannot be planned")
    options: Options = {
        "checkpointing": row.checkpointing,
        "attention": attention,
        "loss": row.loss,
        "offload": offload,
    }
    if "compile" in _FIELDS:
        options["compile"] = row.compile
    return options | _kernels(row, model)


def _kernels(row: Row, model: ModelSpec) -> Options:
    stated = (row.fused_kernels or "").split(",")
    options: Options = {"optimizer_in_backward": "optimizer-in-backward" in stated or None}
    if model.model_type in choices.FUSED_FAMILIES:
        named = tuple(one for one in stated if one in choices.FUSED_KERNELS)
        options["fused_kernels"] = named
    return options


def _machine(row: Row, model: ModelSpec) -> Options:
    gpu = gpu_of_row(row)
    node = NODES.get((row.family, gpu.name)) if gpu else None
    machine: Options = {"node": find_node(node)} if node else {}
    return {"gpu": gpu, "stack": stack_of_row(row), **machine}


_TAKE: tuple[Callable[[Row, ModelSpec], Options], ...] = (
    _objective,
    _method,
    _quantized,
    precision_of_row,
    _optimizer,
    _engine,
    _scale,
    _data,
    _step,
    _machine,
)
