"""Accelerate's YAML: accelerate 1.15.0 ``commands/config/config_args.py`` and ``cluster.py``."""

from __future__ import annotations

from typing import Any

from vram_plan.app.exchange.deepspeed import FILE as DS_FILE
from vram_plan.app.exchange.deepspeed import parse
from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import CannotSayError, Reading, Weight
from vram_plan.app.exchange.fsdp import fsdp_section, read_fsdp
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.words import need_trainer, regime
from vram_plan.app.exchange.yaml_text import yaml_text
from vram_plan.estimator.config import TrainConfig

FORM = "Accelerate YAML"
FILE = "accelerate.yaml"
_DS = "deepspeed_config"
_MEGATRON = "megatron_lm_config"
_MESH = "parallelism_config"
_TYPES = {
    "no": "torch",
    "multi_gpu": "ddp",
    "fsdp": "fsdp",
    "deepspeed": "deepspeed",
    "megatron_lm": "megatron",
}
_MIXED = frozenset({"no", "bf16", "fp16", "fp8"})
_FP8 = "fp8_config"
_BACKENDS = {"ao": "ao-tensorwise", "te": "te-delayed", "no": "ao-tensorwise"}
"""``fp8_config.backend``; without one torchao is taken where it is installed (accelerator.py)."""


def read(document: Document) -> Reading:
    """What an Accelerate file says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    reader = Reader(document, FORM, "accelerate")
    engine = reader.word(_TYPES, "distributed_type")
    if engine is None:
        raise document.wrong(("distributed_type",), "is missing; Accelerate needs it")
    _read_ranks(reader, alone=engine == "torch")
    _read_mixed(reader)
    if engine == "fsdp":
        # accelerate's launcher takes version 1 where the file names none
        read_fsdp(reader, prefix="fsdp_", version=1, offload="fsdp_offload_params")
    elif engine == "deepspeed":
        _read_deepspeed(reader)
    elif engine == "megatron":
        _read_megatron(reader)
    elif engine == "ddp":
        reader.state("engine", engine, "distributed_type")
    _read_mesh(reader)
    if str(reader.get("dynamo_config", "dynamo_backend") or "no").lower() != "no":
        reader.state("compile", True, "dynamo_config", "dynamo_backend")
    return reader.finish()


def _read_ranks(reader: Reader, *, alone: bool) -> None:
    ranks, nodes = reader.whole("num_processes"), reader.whole("num_machines")
    if alone:
        reader.imply("gpus", 1, "num_processes")
        return
    reader.state("gpus", ranks, "num_processes")
    if ranks and nodes:
        if ranks % nodes:
            raise reader.wrong(("num_processes",), f"must be a multiple of {nodes} nodes", ranks)
        reader.state("gpus_per_node", ranks // nodes, "num_machines")


def _read_mixed(reader: Reader) -> None:
    mixed = reader.text("mixed_precision")
    if mixed is None:
        return
    if mixed.lower() == "false":  # YAML's reading of an unquoted no
        mixed = "no"
    if mixed.lower() == "fp8":
        _read_fp8(reader)
    if mixed.lower() not in _MIXED:
        raise reader.wrong(("mixed_precision",), "must be no, fp16, bf16 or fp8", mixed)
    weight = Weight.OFF if mixed.lower() == "no" else Weight.STATED
    reader.state("mixed_precision", mixed.lower(), "mixed_precision", weight=weight)


def _read_fp8(reader: Reader) -> None:
    """The library that casts to 8 bits, and how it scales."""
    backend = (reader.text(_FP8, "backend") or "no").lower()
    recipe = _BACKENDS.get(backend)
    if recipe is None:
        reader.warn((_FP8, "backend"), f"{backend} is not planned; the plan takes torchao")
        recipe = _BACKENDS["ao"]
    if recipe == "te-delayed" and reader.flag(_FP8, "use_mxfp8_block_scaling"):
        recipe = "te-mxfp8"
    reader.state("fp8_recipe", recipe, _FP8, "backend")


def _read_deepspeed(reader: Reader) -> None:
    """Either a reference to DeepSpeed's own file, or a few of its keys."""
    reader.state("engine", "deepspeed", "distributed_type")
    if reader.has(_DS, "deepspeed_config_file"):
        reader.refer(_DS, "deepspeed_config_file")
        return
    zero: dict[str, Any] = {"stage": reader.whole(_DS, "zero_stage", least=0) or 0}
    if reader.get(_DS, "zero_stage") is None:
        zero["stage"] = 2  # utils/dataclasses.py DeepSpeedPlugin.zero_stage
    for key in ("offload_optimizer", "offload_param"):
        device = reader.text(_DS, f"{key}_device") or "none"
        if device.lower() != "none":
            zero[key] = {"device": device.lower()}
    raw = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}
    found = parse(raw, reader.document)
    reader.state("ds_config", found, _DS)
    reader.state("zero", found.stage, _DS, "zero_stage")
    for option in ("offload", "offload_device"):
        reader.state(option, found.options.get(option), _DS, "offload_optimizer_device")
    steps = reader.whole(_DS, "gradient_accumulation_steps")
    reader.state("grad_accum", steps, _DS, "gradient_accumulation_steps")


def _read_megatron(reader: Reader) -> None:
    reader.state("engine", "megatron", "distributed_type")
    prefix = "megatron_lm_"
    keys = {
        "tp": "tp_degree",
        "pp": "pp_degree",
        "cp": "context_parallel_size",
        "ep": "expert_model_parallel_size",
        "grad_accum": "num_micro_batches",
    }
    for option, key in keys.items():
        value = reader.whole(_MEGATRON, prefix + key)
        reader.state(option, value, _MEGATRON, prefix + key)
    flag = reader.flag(_MEGATRON, f"{prefix}sequence_parallelism")
    reader.state("sequence_parallel", flag, _MEGATRON, f"{prefix}sequence_parallelism")
    shared = reader.flag(_MEGATRON, f"{prefix}use_distributed_optimizer")
    if shared is not None:
        reader.state("zero", int(shared), _MEGATRON, f"{prefix}use_distributed_optimizer")
    if reader.flag(_MEGATRON, f"{prefix}recompute_activations"):
        # Megatron-LM's --recompute-activations is the selective kind
        key = f"{prefix}recompute_activations"
        reader.state("checkpointing", "selective", _MEGATRON, key)


def _read_mesh(reader: Reader) -> None:
    """Sizes of the device mesh (``accelerate/parallelism_config.py``)."""
    prefix = f"{_MESH}_"
    for option in ("tp", "cp"):
        size = reader.whole(_MESH, f"{prefix}{option}_size")
        if size and size > 1:
            reader.state(option, size, _MESH, f"{prefix}{option}_size")
    copies = reader.whole(_MESH, f"{prefix}dp_replicate_size") or 1
    parts = reader.whole(_MESH, f"{prefix}dp_shard_size") or 1
    if copies > 1 and parts > 1:
        # the mesh decides over FSDP's own switch, which has no word for it in version 2
        key = f"{prefix}dp_replicate_size"
        reader.state("fsdp", "hybrid-shard", _MESH, key, weight=Weight.OVERRIDING)


def write(config: TrainConfig) -> str:
    """The file for a configuration.

    Raises:
        CannotSayError: names the option that Accelerate has no word for.
    """
    need_trainer(config, FORM)
    alone = config.gpus == 1 or config.engine == "device-map"
    nodes = config.gpus // config.gpus_per_node
    values: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "NO" if alone else "MULTI_GPU",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": regime(config).mixed,
        "num_machines": 1 if alone else nodes,
        "num_processes": 1 if alone else config.gpus,
        "rdzv_backend": "c10d" if nodes > 1 and not alone else "static",
        "same_network": True,
        "use_cpu": False,
    }
    if config.engine in {"fsdp1", "fsdp2"}:
        values["distributed_type"] = "FSDP"
        found = fsdp_section(config, offload="offload_params")
        values["fsdp_config"] = {f"fsdp_{key}": value for key, value in found.items()}
        _write_mesh(config, values)
    if config.engine == "deepspeed":
        values["distributed_type"] = "DEEPSPEED"
        # the launcher refuses a mixed precision beside DeepSpeed's own file
        del values["mixed_precision"]
        values[_DS] = {"deepspeed_config_file": DS_FILE, "zero3_init_flag": config.zero == 3}
    if config.precision == "fp8":
        values[_FP8] = _fp8_section(config)
    if config.compile:
        values["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    return yaml_text(values)


def _fp8_section(config: TrainConfig) -> dict[str, Any]:
    """Raises CannotSayError for scaling that Accelerate does not choose by its file."""
    if config.fp8_recipe not in {*_BACKENDS.values(), "te-mxfp8"}:
        raise CannotSayError(f"{FORM} has no word for --fp8-recipe {config.fp8_recipe}")
    if config.engine in {"torch", "ddp"} and not config.autocast:
        raise CannotSayError(f"{FORM} computes fp8 under autocast: add --amp")
    section: dict[str, Any] = {"backend": "TE" if config.fp8_recipe.startswith("te-") else "AO"}
    if config.fp8_recipe == "te-mxfp8":
        section["use_mxfp8_block_scaling"] = True
    return section


def _write_mesh(config: TrainConfig, values: dict[str, Any]) -> None:
    hybrid = config.fsdp == "hybrid-shard"
    if config.engine == "fsdp1":
        return
    if not hybrid and config.tp == config.cp == 1:
        return
    if config.sequence_parallel:
        raise CannotSayError(f"{FORM} has no --sequence-parallel")
    inner = config.gpus_per_node if hybrid else config.gpus
    shards, rest = divmod(inner, config.tp * config.cp)
    if rest or not shards:
        raise CannotSayError(f"{FORM} has no mesh for --tp {config.tp} --cp {config.cp} in a node")
    sizes = {
        "dp_replicate_size": config.gpus // inner,
        "dp_shard_size": shards,
        "tp_size": config.tp,
        "cp_size": config.cp,
    }
    values[_MESH] = {f"{_MESH}_{key}": value for key, value in sizes.items()}
