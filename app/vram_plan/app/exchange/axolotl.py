"""axolotl's YAML: axolotl-ai-cloud/axolotl @ 067b021c8b87a9e5e380b9173c704cf7340e30f5.

``src/axolotl/utils/schemas/*.py`` (fields and defaults), ``utils/config/__init__.py``
(``resolve_dtype``), ``loaders/model.py`` (quantization), ``integrations/liger/args.py``.
"""

from __future__ import annotations

from math import prod

from vram_plan.app.exchange.axolotl_writer import FILE, FORM, LIGER, LOSSES, write
from vram_plan.app.exchange.document import Document
from vram_plan.app.exchange.facts import Reading, Weight
from vram_plan.app.exchange.fsdp import SECTION, read_fsdp
from vram_plan.app.exchange.peft_config import (
    DEFAULT_TARGETS,
    read_targets,
    saved_modules,
)
from vram_plan.app.exchange.reader import Reader
from vram_plan.app.exchange.training_arguments import read_deepspeed
from vram_plan.app.exchange.words import (
    in_order,
    read_attention,
    read_checkpointing,
    read_optimizer,
)

__all__ = ["FILE", "FORM", "read", "write"]

_KERNELS = {
    "flash_attention": "flash",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Switches of releases before ``attn_implementation``."""


def read(document: Document) -> Reading:
    """What an axolotl file says.

    Raises:
        ValueError: one line with the file, the line and the way out.
    """
    reader = Reader(document, FORM, "axolotl")
    if reader.get("rl"):
        raise reader.wrong(
            ("rl",), "preference training is not planned; leave it out", reader.get("rl")
        )
    reader.state("model", reader.text("base_model"), "base_model")
    _read_data(reader)
    _read_adapter(reader)
    _read_precision(reader)
    _read_memory(reader)
    _read_kernels(reader)
    _read_sharding(reader)
    return reader.finish()


def _read_data(reader: Reader) -> None:
    """Two of the three batch sizes are given (``check_batch_size_fields``)."""
    micro = reader.whole("micro_batch_size")
    steps, total = reader.whole("gradient_accumulation_steps"), reader.whole("batch_size")
    reader.state("micro_batch", micro, "micro_batch_size")
    if steps is None and micro and total:
        steps = max(1, total // micro)
    reader.state("grad_accum", steps, "gradient_accumulation_steps")
    reader.state("seq_len", reader.whole("sequence_len"), "sequence_len")
    reader.imply("seq_len", 512, "sequence_len")
    sets = reader.document.values.get("datasets")
    rows = sets if isinstance(sets, list) else []
    kinds = [one.get("type") for one in rows if isinstance(one, dict)]
    if kinds == ["completion"] or reader.document.values.get("pretraining_dataset"):
        reader.state("task", "pretrain", "datasets")


def _read_adapter(reader: Reader) -> None:
    adapter = reader.text("adapter") or ""
    if adapter not in {"", "lora", "qlora"}:
        raise reader.wrong(("adapter",), "must be lora or qlora", adapter)
    eight, four = reader.flag("load_in_8bit"), reader.flag("load_in_4bit")
    if eight:
        reader.state("quantization", "int8", "load_in_8bit")
    if four:
        reader.state("quantization", "nf4", "load_in_4bit")
        reader.state("double_quant", True, "load_in_4bit", weight=Weight.OFF)
    if reader.flag("gptq"):
        reader.state("quantization", "gptq4", "gptq")
    if not adapter:
        reader.imply("method", "full", "adapter")
        return
    method = "rslora" if reader.flag("peft_use_rslora") else "lora"
    method = "dora" if reader.flag("peft_use_dora") else method
    reader.state("method", method if adapter == "lora" else adapter, "adapter")
    reader.state("lora_rank", reader.whole("lora_r"), "lora_r")
    reader.imply("lora_rank", 8, "lora_r")
    reader.state("lora_dropout", reader.share("lora_dropout") or 0.0, "lora_dropout")
    if reader.flag("lora_target_linear"):
        reader.state("lora_targets", "all-linear", "lora_target_linear")
    elif reader.has("lora_target_modules"):
        read_targets(reader, "lora_target_modules")
    reader.imply("lora_targets", DEFAULT_TARGETS, "lora_target_modules")
    saved_modules(reader, "lora_modules_to_save")
    cast = reader.flag("peft_autocast_adapter_dtype")
    reader.state("adapter_cast", cast, "peft_autocast_adapter_dtype")


def _read_precision(reader: Reader) -> None:
    """``resolve_dtype``: autocast over weights of the same dtype, or without AMP."""
    auto = reader.get("bf16") == "auto" or not reader.has("bf16")
    half, without = reader.flag("fp16"), {"bfloat16": "bf16", "float16": "fp16"}
    if reader.get("bf16") == "full" or (reader.get("bf16") != "auto" and reader.flag("bf16")):
        mixed, key = "bf16", "bf16"
    elif half:
        mixed, key = "fp16", "fp16"
    else:
        mixed, key = "no", "bf16"
        for switch, dtype in without.items():
            if reader.flag(switch):
                reader.state("mixed_precision", "no", switch, weight=Weight.OFF)
                reader.state("model_dtype", dtype, switch)
                return
        if auto and half is None and not reader.flag("float32"):
            mixed = "bf16"
    weight = Weight.OFF if mixed == "no" else Weight.STATED
    reader.state("mixed_precision", mixed, key, weight=weight)
    reader.state("model_dtype", "fp32" if mixed == "no" else mixed, key)


def _read_memory(reader: Reader) -> None:
    _read_optimizer(reader)
    value = reader.get("gradient_checkpointing")
    if value in ("offload", "offload_disk"):
        reader.state("checkpointing", "offload", "gradient_checkpointing")
    else:
        read_checkpointing(reader, "gradient_checkpointing")
        reader.imply("checkpointing", "none", "gradient_checkpointing")
    if reader.get("activation_offloading"):
        reader.state("activation_offloading", True, "activation_offloading")
    if reader.section("gradient_checkpointing_kwargs").get("use_reentrant") is True:
        reader.warn(("gradient_checkpointing_kwargs",), "use_reentrant true is not planned")
    if reader.get("torch_compile") is True:
        reader.state("compile", True, "torch_compile")


def _read_optimizer(reader: Reader) -> None:
    """``optimizer``: transformers' names, and Muon beside them."""
    if reader.get("optimizer") == "muon":
        reader.state("optimizer", "muon", "optimizer")
    else:
        read_optimizer(reader, "optimizer")
    reader.imply("optimizer", "adamw-fused", "optimizer")


def _read_kernels(reader: Reader) -> None:
    read_attention(reader, "attn_implementation")
    for key, kernel in _KERNELS.items():
        if reader.flag(key):
            reader.state("attention", kernel, key)
    reader.imply("attention", "sdpa", "attn_implementation")
    reader.get("plugins")
    fused = {name: key for key, name in LIGER.items() if reader.flag(key)}
    if fused:
        reader.state("fused_kernels", in_order(fused), next(iter(fused.values())))
    for key, loss in LOSSES.items():
        if reader.flag(key):
            reader.state("loss", loss, key)
    reader.imply("loss", "hf", "liger_fused_linear_cross_entropy")


def _read_sharding(reader: Reader) -> None:
    read_deepspeed(reader)
    if reader.has(SECTION) or reader.get("fsdp"):
        section = reader.section(SECTION)
        prefix = (
            "fsdp_"
            if any(key.startswith("fsdp_") and key != "fsdp_version" for key in section)
            else ""
        )
        # unversioned files keep FSDP 1 (``check_fsdp_version_in_fsdp_config``)
        version = reader.whole("fsdp_version") or reader.whole(SECTION, "fsdp_version") or 1
        read_fsdp(reader, prefix=prefix, version=version, offload=f"{prefix}offload_params")
    sizes = {"tp": "tensor_parallel_size", "cp": "context_parallel_size"}
    for option, key in sizes.items():
        size = reader.whole(key)
        if size and size > 1:
            reader.state(option, size, key)
    copies, parts = reader.whole("dp_replicate_size") or 1, reader.whole("dp_shard_size") or 1
    if copies > 1 and parts > 1:
        key = "dp_replicate_size"
        reader.state("fsdp", "hybrid-shard", key, weight=Weight.OVERRIDING)
        split = (reader.whole(size) or 1 for size in sizes.values())
        reader.state("gpus", copies * parts * prod(split), key)
