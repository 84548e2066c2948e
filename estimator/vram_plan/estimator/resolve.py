"""From what a person typed to a complete configuration: defaults, and what follows from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vram_plan.estimator import choices
from vram_plan.estimator.choices import (
    BITSANDBYTES,
    FOUR_BIT,
    FUSED_FAMILIES,
    LORA_FAMILY,
    MEGATRON_BLOCKS,
    WHOLE_MODEL,
)
from vram_plan.estimator.config import DEFAULT_VIRTUAL_TOKENS, TrainConfig, ZeroSizes
from vram_plan.estimator.fp8 import settle_fp8
from vram_plan.estimator.lengths import FIXED, parse_lengths
from vram_plan.estimator.methods.registry import check_method
from vram_plan.estimator.overhead import REPLAYED
from vram_plan.estimator.quantization import GPTQ_BITS, GPTQ_GROUP
from vram_plan.estimator.refusals import refuse
from vram_plan.profiles import switches
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.stack import Stack, parse_stack

Options = Mapping[str, Any]
"""Options by command-line name with underscores; None or missing means "not given"."""

_METHOD_DEFAULTS: dict[str, dict[str, int]] = {
    # PEFT 0.21.2 AdaLoraConfig.init_r
    "adalora": {"lora_rank": 12},
    # MAM, arXiv:2110.04366, and UniPELT, arXiv:2110.07577, as the adapters library sets them
    "mam": {"virtual_tokens": 30, "prompt_encoder_size": 800},
    "unipelt": {"virtual_tokens": 10, "prompt_encoder_size": 512},
}
"""Sizes that a method's own library takes."""
_BUCKETS = {
    # colossalai/booster/plugin/low_level_zero_plugin.py: reduce_bucket_size_in_m, overlap
    "colossalai": ZeroSizes(
        reduce_bucket_size=12 * 2**20, overlap_comm=True, contiguous_gradients=False
    ),
    # InternLM/InternEvo configs/_base_/models/internlm2_7B.py hybrid_zero_optimizer
    "internevo": ZeroSizes(
        reduce_bucket_size=512 * 2**20, overlap_comm=True, contiguous_gradients=False
    ),
}
"""ZeRO of other engines: gradients are flattened when a bucket is full; none is kept for them."""
LEARNING_BLOCKS = 2
"""Blocks that learn under ``--method freeze`` unless said otherwise (LLaMA-Factory's default)."""
_KNOWN = frozenset(field.name for field in fields(TrainConfig)) | {"ds_config"}


def resolve(model: ModelSpec, options: Options) -> TrainConfig:
    """Fill in what was not given and refuse what cannot be run.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    config = complete(model, options)
    refuse_config(config, options)
    return config


def refuse_config(config: TrainConfig, options: Options) -> None:
    """Refuse a complete configuration that cannot be run.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    refuse(config, {name: value for name, value in options.items() if value is not None})
    check_method(config)


def complete(model: ModelSpec, options: Options) -> TrainConfig:
    """Fill in what was not given; whether it can be run is not asked.

    Raises:
        ValueError: nothing can be filled in; one line that names the option and the way out.
    """
    given = {name: value for name, value in options.items() if value is not None}
    unknown = set(given) - _KNOWN
    if unknown:
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}")
    notes: list[str] = []
    if model.note:
        notes.append(f"model: {model.note}")
    values = dict(given)
    if isinstance(values.setdefault("stack", Stack()), str):
        values["stack"] = parse_stack(values["stack"])
    if "ds_config" in values:
        _take_ds_config(model, values, notes)
    _resolve_scale(values)
    _resolve_engine(values, notes)
    _resolve_zero_sizes(values)
    _resolve_method(model, values, notes)
    _resolve_precision(model, values, notes)
    if values.get("compile") and model.model_type not in FUSED_FAMILIES:
        notes.append(f"--compile: {model.model_type} is counted as written, nothing fused")
    if model.num_experts and values["engine"] == "megatron" and values.get("tp", 1) > 1:
        values.setdefault("sequence_parallel", True)  # ``MoELayer.forward`` trains it so alone
    if switches.fuses_adamw(values["stack"]) and values.get("optimizer", "adamw") == "adamw":
        values["optimizer"] = "adamw-fused"
    _check_group(values)
    _resolve_data(model, values, notes)
    _resolve_hardware(values, notes)
    return TrainConfig(model=model, assumptions=tuple(notes), **values)


def _take_ds_config(model: ModelSpec, values: dict[str, Any], notes: list[str]) -> None:
    """What a DeepSpeed JSON says; an option on the command line says it louder."""
    ds_config = values["ds_config"] = values["ds_config"].for_model(model.hidden_size)
    for name, value in ds_config.options.items():
        values.setdefault(name, value)
    notes.extend(ds_config.notes)


def _resolve_scale(values: dict[str, Any]) -> None:
    gpus = values.setdefault("gpus", 1)
    node = values.get("node")
    values.setdefault("gpus_per_node", min(gpus, node.gpus if node else 8))


def _resolve_engine(values: dict[str, Any], notes: list[str]) -> None:
    if "ds_config" in values and "zero" not in values:
        values["zero"] = values["ds_config"].stage
    if "engine" not in values:
        values["engine"] = _engine(values, notes)
    if values["engine"] in {"fsdp1", "fsdp2"}:
        values.setdefault("fsdp", "full-shard")
    if values["engine"] in choices.ZERO_ENGINES and values["engine"] != "megatron":
        values.setdefault("zero", 0 if values["engine"] == "deepspeed" else 1)
    if values["engine"] == "device-map":
        values.setdefault("pp", values["gpus"])
        values.setdefault("pp_schedule", "naive")
    pieces = values.get("virtual_pipeline", 1)
    values.setdefault("pp_schedule", "interleaved" if pieces > 1 else "1f1b")


def _engine(values: dict[str, Any], notes: list[str]) -> str:
    """DESIGN: torch on one GPU, ddp on several, deepspeed with --zero, fsdp2 with --fsdp."""
    if values.get("zero") is not None:
        return "deepspeed"
    if values.get("fsdp"):
        return "fsdp2"
    if values.get("pp_schedule") == "naive":
        return "device-map"
    if max(values.get(name, 1) for name in ("tp", "pp", "cp", "ep")) > 1:
        notes.append("engine megatron: tensor, pipeline, context or expert ranks were asked for")
        return "megatron"
    return "torch" if values["gpus"] == 1 else "ddp"


def _resolve_zero_sizes(values: dict[str, Any]) -> None:
    ds_config = values.pop("ds_config", None)
    if ds_config is not None:
        values["zero_sizes"] = ds_config.sizes
    elif values["engine"] == "deepspeed":
        # overlap_comm None becomes True only at stage 3 (DeepSpeed 0.19.8 zero/config.py)
        values.setdefault("zero_sizes", ZeroSizes(overlap_comm=values["zero"] == 3))
    elif values["engine"] in _BUCKETS:
        values.setdefault("zero_sizes", _BUCKETS[values["engine"]])


def _resolve_method(model: ModelSpec, values: dict[str, Any], notes: list[str]) -> None:
    method = values.setdefault("method", "full")
    if values.get("task") == "inference":
        values["method"] = "full"
    if method == "qlora":
        values.setdefault("quantization", "nf4")
    if values.get("quantization", "none") != "none":
        _resolve_quantization(model, values, notes)
    if method in LORA_FAMILY:
        values.setdefault("lora_targets", "all-linear")
        values.setdefault("lora_dropout", switches.lora_dropout(values["stack"]))
        rank = switches.lora_rank(values["stack"], model.name)
        if rank is not None:
            values.setdefault("lora_rank", rank)
    for name, value in _METHOD_DEFAULTS.get(method, {}).items():
        values.setdefault(name, value)
    if method == "freeze" and "freeze_layers" not in values:
        values["freeze_layers"] = max(0, model.num_blocks - LEARNING_BLOCKS)
        notes.append(f"--freeze-layers {values['freeze_layers']}: the last {LEARNING_BLOCKS} learn")


def _resolve_quantization(model: ModelSpec, values: dict[str, Any], notes: list[str]) -> None:
    """What comes with quantized weights: QLoRA's second quantization, PEFT's preparation."""
    if values["quantization"] in {"nf4", "fp4"}:
        values.setdefault("double_quant", values["method"] == "qlora")
    if values["quantization"] in BITSANDBYTES and values.get("task") != "inference":
        # A flat or uniform unit takes one dtype: TRL skips the cast when FSDP shards 4-bit weights
        # (trl 0.13.0 trainer/sft_trainer.py is_sharded_qlora).
        sharded = values["engine"] in {"fsdp1", "fsdp2"} and values["quantization"] in FOUR_BIT
        values.setdefault("kbit_preparation", not sharded)
    if model.num_experts and switches.stacks_experts(values["stack"]):
        notes.append(
            "experts stay unquantized: transformers 5.23 stacks them in 3-D weights, and only "
            "linear layers are replaced"
        )


def _resolve_precision(model: ModelSpec, values: dict[str, Any], notes: list[str]) -> None:
    if values.get("task") == "inference" and values.get("weights_dtype") in {"fp32", "fp16"}:
        values.setdefault("precision", values["weights_dtype"])
    values.setdefault("precision", "bf16")
    precision = settle_fp8(values, notes)
    if values["engine"] == "deepspeed":  # its engine casts every weight, adapters too
        values.setdefault("adapter_dtype", precision)
    if "weights_dtype" not in values:
        values["weights_dtype"] = _weights_dtype(values, precision, notes)
    packed = values.get("quantization", "none") != "none"
    dtype = switches.adapter_dtype(values["stack"], precision, quantized=packed)
    values.setdefault("adapter_dtype", dtype)
    values.setdefault("kv_dtype", "fp16" if precision == "fp16" else "bf16")
    if model.model_type in choices.EAGER_ONLY and values["engine"] not in MEGATRON_BLOCKS:
        if "attention" not in values:
            notes.append(f"attention eager: transformers' {model.model_type} has no other")
        values.setdefault("attention", "eager")
    if model.model_type in choices.WITHOUT_FLASH and "attention" not in values:
        notes.append(f"attention sdpa: transformers' {model.model_type} has no flash attention")
        values["attention"] = "sdpa"
    if precision == "fp32" and "attention" not in values:
        values["attention"] = "eager" if model.model_type in choices.WITHOUT_SDPA else "sdpa"
        notes.append(f"attention {values['attention']}: flash attention computes in 16 bits only")


def _weights_dtype(values: dict[str, Any], precision: str, notes: list[str]) -> str:
    engine, whole = values["engine"], values["method"] in WHOLE_MODEL
    if precision == "fp32":
        return "fp32"
    if values.get("task") == "inference" or not whole:
        return precision
    if engine in {"fsdp1", "fsdp2"}:
        return "fp32" if switches.upcasts_shards(values["stack"], engine) else precision
    if engine in choices.ZERO_ENGINES or precision == "bf16":
        return precision
    notes.append("fp16 compute over fp32 weights (autocast): fp16 gradients cannot be unscaled")
    return "fp32"


def _resolve_data(model: ModelSpec, values: dict[str, Any], notes: list[str]) -> None:
    if "seq_len" not in values:
        prompts = values.get("virtual_tokens", DEFAULT_VIRTUAL_TOKENS)
        taken = prompts if values["method"] in {"prompt", "p-tuning"} else 0
        values["seq_len"] = _default_length(model, notes, taken)
    if model.is_encoder_decoder:
        values.setdefault("source_len", values["seq_len"])
    if parse_lengths(values.get("lengths", FIXED)) is not None:
        if model.is_encoder_decoder or values.get("task") == "inference":
            raise ValueError(
                "--lengths is for decoders and encoders in training; leave it out and give the "
                "longest --seq-len"
            )
        if values["engine"] not in REPLAYED:
            notes.append(
                f"--lengths: changes what is reserved, not replayed for --engine {values['engine']}"
            )


def _check_group(values: dict[str, Any]) -> None:
    group = values.get("gptq_group_size", GPTQ_GROUP)
    if group != -1 and group < 1:
        raise ValueError(f"--gptq-group-size {group}: give the inputs of a group, or -1 for all")
    if group != GPTQ_GROUP and values.get("quantization", "none") not in GPTQ_BITS:
        raise ValueError("--gptq-group-size needs --quantization gptq4 or gptq8")


def _default_length(model: ModelSpec, notes: list[str], taken: int) -> int:
    limit = model.position_embedding_rows if model.position_embedding_type == "learned" else 0
    limit = min(limit, model.max_position_embeddings) if limit else 0
    if limit and limit < 2048 + taken:
        notes.append(f"--seq-len {limit - taken}: the model's position table ends there")
        return max(1, limit - taken)
    return 2048


def _resolve_hardware(values: dict[str, Any], notes: list[str]) -> None:
    from vram_plan.profiles.nodes import default_node

    gpu = values.get("gpu")
    if gpu is not None and values.get("node") is None:
        values["node"] = default_node(gpu, values["gpus_per_node"])
