"""Combinations that no library runs: refused in one line, with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fp8 import refused_fp8
from vram_plan.estimator.refused_experts import refused_experts
from vram_plan.estimator.refused_kernels import refused_by_megatron, refused_kernels, refused_losses
from vram_plan.estimator.refused_zero import refused_zero

Given = dict[str, Any]
Check = Callable[[TrainConfig, Given], Iterator[str]]
_LIMITS = {
    "gpus": 1_000_000,
    "gpus_per_node": 1_024,
    "lora_rank": 65_536,
    "adapter_size": 1_048_576,
    "virtual_tokens": 1_048_576,
    "prompt_encoder_size": 1_048_576,
    "tp": 65_536,
    "pp": 4_096,
    "cp": 65_536,
    "ep": 65_536,
    "virtual_pipeline": 4_096,
    "micro_batch": 1_048_576,
    "seq_len": 1_073_741_824,
    "source_len": 1_073_741_824,
    "grad_accum": 1_048_576,
}
_UNSPLIT = frozenset({"torch", "ddp", "fsdp1", "colossalai"})
"""Engines without tensor, pipeline, context or expert ranks."""
_CHOICES = {
    "task": choices.TASKS,
    "method": choices.METHODS,
    "engine": choices.ENGINES,
    "zero": (None, *choices.ZERO_STAGES),
    "fsdp": ("", *choices.FSDP_STRATEGIES),
    "pp_schedule": choices.PIPELINE_SCHEDULES,
    "offload": choices.OFFLOADS,
    "offload_device": choices.OFFLOAD_DEVICES,
    "precision": choices.PRECISIONS,
    "weights_dtype": choices.WEIGHTS_DTYPES,
    "adapter_dtype": choices.ADAPTER_DTYPES,
    "quantization": choices.QUANTIZATIONS,
    "optimizer": choices.OPTIMIZERS,
    "checkpointing": choices.CHECKPOINTINGS,
    "attention": choices.ATTENTIONS,
    "loss": choices.LOSSES,
    "kv_dtype": choices.KV_DTYPES,
    "prompt_encoder": choices.PROMPT_ENCODERS,
}


def refuse(config: TrainConfig, given: Given) -> None:
    """Raise for the first reason why ``config`` cannot be run.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    reason = next(reasons((*VALUES, *DEGREES, *TOGETHER), config, given), "")
    if reason:
        raise ValueError(reason)


def reasons(checks: tuple[Check, ...], config: TrainConfig, given: Given) -> Iterator[str]:
    """Why some checks refuse ``config``, in their order."""
    for check in checks:
        yield from check(config, given)


def option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def _ranges(config: TrainConfig, given: Given) -> Iterator[str]:
    for name, most in _LIMITS.items():
        value = getattr(config, name)
        least = 0 if name == "source_len" else 1
        if not isinstance(value, int) or not least <= value <= most:
            yield f"{option(name)} must be between {least} and {most:,}, got {value}"
    if not 0 <= config.lora_dropout < 1:
        yield f"--lora-dropout must be in [0, 1), got {config.lora_dropout}"
    if not 0 < config.attention_density <= 1:
        yield f"--attention-density must be in (0, 1], got {config.attention_density}"


def _words(config: TrainConfig, given: Given) -> Iterator[str]:
    for name, known in _CHOICES.items():
        value = getattr(config, name)
        if value not in known:
            words = ", ".join(str(word) for word in known if word not in {None, ""})
            yield f"{option(name)} {value}: choose from {words}"


def _degrees(config: TrainConfig, given: Given) -> Iterator[str]:
    for name in ("tp", "pp", "cp"):
        degree = getattr(config, name)
        if config.gpus % degree:
            yield (
                f"--{name} {degree} with --gpus {config.gpus}: "
                f"{config.gpus} GPUs are not divisible by {degree}"
            )
    product = config.tp * config.pp * config.cp
    if config.gpus % product:
        yield (
            f"--tp {config.tp} --pp {config.pp} --cp {config.cp} need a multiple of {product} "
            f"GPUs, --gpus is {config.gpus}"
        )
    if config.gpus_per_node > config.gpus:
        yield f"--gpus-per-node {config.gpus_per_node} is more than --gpus {config.gpus}"
    if config.gpus % config.gpus_per_node:
        yield (
            f"--gpus {config.gpus} with --gpus-per-node {config.gpus_per_node}: nodes would be "
            "uneven; choose a divisor"
        )


def _shapes(config: TrainConfig, given: Given) -> Iterator[str]:
    model = config.model
    if model.num_attention_heads % config.tp:
        yield (
            f"--tp {config.tp}: {model.name} has {model.num_attention_heads} attention heads, "
            f"which {config.tp} does not divide"
        )
    if model.intermediate_size % config.tp:
        yield (
            f"--tp {config.tp}: the feed-forward width {model.intermediate_size} of {model.name} "
            f"is not divisible by {config.tp}"
        )
    if not 0 <= config.freeze_layers <= model.num_blocks:
        yield (
            f"--freeze-layers {config.freeze_layers}: {model.name} has {model.num_blocks} layers; "
            "choose 0 to that many"
        )
    if config.pp > model.num_blocks:
        yield f"--pp {config.pp}: {model.name} has only {model.num_blocks} layers"
    if config.seq_len % (config.cp * 2) and config.cp > 1:
        yield (
            f"--cp {config.cp} with --seq-len {config.seq_len}: the length must be a multiple of "
            f"2 · cp = {2 * config.cp}"
        )
    rows = model.position_embedding_rows if model.position_embedding_type == "learned" else 0
    prompts = config.virtual_tokens if config.method in {"prompt", "p-tuning"} else 0
    most = model.max_position_embeddings - prompts
    if rows and config.seq_len > most:
        beside = f" with {prompts} virtual tokens" if prompts else ""
        yield (
            f"--seq-len {config.seq_len}{beside}: {model.name} has positions for "
            f"{model.max_position_embeddings} tokens; choose --seq-len {max(most, 1)} or less"
        )


def _engines(config: TrainConfig, given: Given) -> Iterator[str]:
    engine = config.engine
    stages = choices.ZERO_ENGINES.get(engine, ())
    if config.zero is not None and not stages:
        yield f"--zero {config.zero} with --engine {engine}: ZeRO stages are DeepSpeed's; drop one"
    elif config.zero is not None and config.zero not in stages:
        has = " or ".join(str(stage) for stage in stages)
        yield f"--zero {config.zero} with --engine {engine}: it has stage {has}"
    if config.fsdp and engine not in {"fsdp1", "fsdp2", "megatron"}:
        yield f"--fsdp {config.fsdp} with --engine {engine}: choose --engine fsdp2 or drop --fsdp"
    if engine == "torch" and config.gpus > 1:
        yield f"--engine torch runs on one GPU, --gpus is {config.gpus}; choose --engine ddp"
    if engine in _UNSPLIT and max(config.tp, config.pp, config.cp, config.ep) > 1:
        yield (
            f"--engine {engine} has no tensor, pipeline, context or expert ranks; choose "
            "--engine megatron"
        )
    if engine == "deepspeed" and config.zero in {2, 3} and config.pp > 1:
        yield (
            f"--zero {config.zero} with --pp {config.pp}: DeepSpeed's pipeline engine supports "
            "ZeRO 0 and 1 only (deepspeed/runtime/pipe/engine.py); choose --zero 1"
        )
    if config.fsdp == "hybrid-shard" and config.gpus == config.gpus_per_node:
        yield "--fsdp hybrid-shard replicates over nodes, but there is one; choose full-shard"


def _quantized(config: TrainConfig, given: Given) -> Iterator[str]:
    if config.kbit_preparation and config.quantization not in choices.BITSANDBYTES:
        yield "--kbit-preparation needs --quantization int8, nf4 or fp4"
    if config.quantization == "none":
        if given.get("double_quant"):
            yield "--double-quant needs --quantization nf4 or fp4"
        return
    if config.double_quant and config.quantization not in {"nf4", "fp4"}:
        yield f"--double-quant with --quantization {config.quantization}: only nf4 and fp4 have it"
    if config.training and config.method in choices.WHOLE_MODEL:
        yield (
            f"--quantization {config.quantization} with --method {config.method}: quantized "
            "weights cannot be trained; choose --method lora or another adapter"
        )
    if config.engine in choices.MEGATRON_BLOCKS:
        yield f"--quantization {config.quantization} is not available with --engine {config.engine}"
    if max(config.tp, config.pp, config.cp, config.ep) > 1 and config.engine != "device-map":
        yield (
            f"--quantization {config.quantization} with tensor, pipeline, context or expert ranks: "
            "bitsandbytes and GPTQ layers cannot be split; use --zero, --fsdp or ddp"
        )


def _adapted(config: TrainConfig, given: Given) -> Iterator[str]:
    if config.modules_to_save and config.method not in {"lora", "rslora", "qlora"}:
        yield "--modules-to-save needs --method lora, rslora or qlora"
    if "lora" in config.fused_kernels and config.quantization == "none":
        yield "--fused-kernels lora are for quantized weights: choose --quantization nf4 or gptq4"


def _precisions(config: TrainConfig, given: Given) -> Iterator[str]:
    weights, precision = config.weights_dtype, config.precision
    if weights == "int8" and config.training:
        yield (
            "--weights-dtype int8 is for --task inference; to train over int8 weights use "
            "--quantization int8"
        )
    if precision == "fp32" and weights not in {"fp32", "int8"} and config.training:
        yield f"--precision fp32 with --weights-dtype {weights}: choose --weights-dtype fp32"
    if {weights, precision} == {"bf16", "fp16"}:
        yield f"--weights-dtype {weights} with --precision {precision}: choose one 16-bit type"
    yield from refused_kernels(config)
    yield from refused_losses(config)
    if config.attention == "flash" and precision == "fp32":
        yield "--attention flash computes in 16 bits; with --precision fp32 choose sdpa or eager"
    if config.gpu is not None and precision == "bf16" and not config.gpu.supports_bf16:
        yield (
            f"--precision bf16 on {config.gpu.name}: {config.gpu.architecture} has no bf16; "
            "choose --precision fp16"
        )


def _offloads(config: TrainConfig, given: Given) -> Iterator[str]:
    offload, device = config.offload, config.offload_device
    if offload == "none":
        if "offload_device" in given:
            yield "--offload-device needs --offload optimizer or optimizer+params"
        return
    if not config.training:
        yield f"--offload {offload} with --task inference: nothing to offload is planned"
    if device == "nvme" and offload == "activations":
        yield "--offload activations goes to host memory; --offload-device nvme is for ZeRO-3"
    if offload == "activations" and config.checkpointing != "none":
        yield (
            "--offload activations with --checkpointing: choose --checkpointing offload to send "
            "the checkpoints to the host, or drop one"
        )
    if offload != "activations":
        yield from _state_offloads(config)


def _state_offloads(config: TrainConfig) -> Iterator[str]:
    """Engines that can hold optimizer states or weights on the host, and how much of them."""
    offload, nvme = config.offload, config.offload_device == "nvme"
    if config.engine in {"deepspeed", "colossalai"}:
        if config.zero == 0:
            yield f"--offload {offload} needs --zero 1, 2 or 3"
        if offload == "optimizer+params" and config.zero != 3:
            yield f"--offload optimizer+params needs --zero 3, not --zero {config.zero}"
        if nvme and config.zero != 3:
            yield f"--offload-device nvme (ZeRO-Infinity) needs --zero 3, not --zero {config.zero}"
    elif config.engine in {"fsdp1", "fsdp2"}:
        if offload == "optimizer" or nvme:
            yield (
                "--fsdp offloads parameters and optimizer together to the host: choose "
                "--offload optimizer+params"
            )
    else:
        yield (
            f"--offload {offload} needs --zero 1, 2 or 3 (or --fsdp); --engine {config.engine} "
            "has none"
        )


def _optimizers(config: TrainConfig, given: Given) -> Iterator[str]:
    if config.optimizer_in_backward and (config.engine != "torch" or config.grad_accum > 1):
        yield "--optimizer-in-backward is planned for --engine torch with --grad-accum 1"
    yield from refused_by_megatron(config)
    yield from refused_zero(config)


VALUES: tuple[Check, ...] = (_ranges, _words)
"""Every field is looked at by itself."""
DEGREES: tuple[Check, ...] = (_degrees, refused_experts)
"""Numbers of GPUs, of those of a machine, and the parallel degrees."""
TOGETHER: tuple[Check, ...] = (
    _shapes,
    _engines,
    _quantized,
    _adapted,
    _precisions,
    refused_fp8,
    _offloads,
    _optimizers,
)
