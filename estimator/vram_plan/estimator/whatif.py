"""What every switch would save or cost here, and the smallest changes that make a plan fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vram_plan.estimator.choices import WHOLE_MODEL
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.planner import Plan, plan_config
from vram_plan.estimator.refusals import refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One change of the command line and the plan it leads to.

    Attributes:
        words: what to type instead.
        plan: the plan with the change.
        saved_bytes: bytes required less with it (negative when it costs).
    """

    words: str
    plan: Plan
    saved_bytes: int


def switches(base: Plan) -> tuple[Switch, ...]:
    """Every single change worth knowing, with its price here, in the order of their effect."""
    found = []
    for words, config in _changes(base.config):
        changed = _try(config)
        if changed is not None:
            saved = base.memory.allocated_bytes - changed.memory.allocated_bytes
            found.append(Switch(words=words, plan=changed, saved_bytes=saved))
    return tuple(sorted(found, key=lambda switch: -switch.saved_bytes))


def remedies(base: Plan, known: tuple[Switch, ...], most: int = 4) -> tuple[Switch, ...]:
    """The smallest changes after which the plan fits the GPU asked about: one switch, else two."""
    if base.config.gpu is None or base.fits[0].fits:
        return ()
    single = [s for s in known if s.plan.fits and s.plan.fits[0].fits]
    if single:
        return tuple(sorted(single, key=lambda switch: switch.saved_bytes)[:most])
    pairs = []
    for first in known:
        if first.saved_bytes <= 0:
            continue
        for words, config in _changes(first.plan.config):
            second = _try(config)
            if second is not None and second.fits and second.fits[0].fits:
                saved = base.memory.allocated_bytes - second.memory.allocated_bytes
                pairs.append(Switch(words=f"{first.words} {words}", plan=second, saved_bytes=saved))
    pairs.sort(key=lambda switch: switch.saved_bytes)
    return tuple(pairs[:most])


def _try(config: TrainConfig) -> Plan | None:
    try:
        refuse(config, {})
    except ValueError:
        return None
    return plan_config(config)


def _changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    if not config.training:
        yield from _inference_changes(config)
        return
    for level in ("full", "none"):
        if config.checkpointing != level:
            yield f"--checkpointing {level}", replace(config, checkpointing=level)
    if config.loss == "hf":
        yield "--loss liger", replace(config, loss="liger")
    if config.micro_batch > 1:
        half = config.micro_batch // 2
        yield f"--micro-batch {half}", replace(config, micro_batch=half)
    half_length = config.seq_len // 2
    if half_length >= 128:
        source = config.source_len // 2
        yield f"--seq-len {half_length}", replace(config, seq_len=half_length, source_len=source)
    yield from _sharding_changes(config)
    yield from _adapter_changes(config)
    if config.optimizer == "adamw" and config.engine != "megatron":
        yield "--optimizer adamw-8bit", replace(config, optimizer="adamw-8bit")


def _sharding_changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    if config.engine == "deepspeed" and config.zero is not None:
        if config.zero < 3:
            stage = config.zero + 1
            sizes = replace(config.zero_sizes, overlap_comm=stage == 3)
            yield f"--zero {stage}", replace(config, zero=stage, zero_sizes=sizes)
        if config.offload == "none" and config.zero:
            yield "--offload optimizer", replace(config, offload="optimizer")
    elif config.engine == "ddp":
        for stage in (2, 3):
            yield f"--zero {stage}", _with_zero(config, stage)
    more = config.gpus * 2
    if config.gpus > 1 and config.engine in {"deepspeed", "fsdp1", "fsdp2"}:
        yield f"--gpus {more}", replace(config, gpus=more, gpus_per_node=min(more, 8))


def _with_zero(config: TrainConfig, stage: int) -> TrainConfig:
    sizes = replace(config.zero_sizes, overlap_comm=stage == 3)
    weights = config.compute_dtype if config.weights_dtype == "fp32" else config.weights_dtype
    return replace(config, engine="deepspeed", zero=stage, zero_sizes=sizes, weights_dtype=weights)


def _adapter_changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    if config.method in WHOLE_MODEL:
        lora = replace(config, method="lora", weights_dtype=config.compute_dtype)
        yield "--method lora", lora
        if config.engine in {"torch", "ddp", "deepspeed"}:
            yield (
                "--method qlora",
                replace(
                    lora,
                    method="qlora",
                    quantization="nf4",
                    double_quant=True,
                    kbit_preparation=True,
                ),
            )
        return
    if config.adapter_dtype == "fp32" and config.precision != "fp32":
        name = config.precision
        yield f"--adapter-dtype {name}", replace(config, adapter_dtype=name)
    if config.quantization == "none" and config.engine in {"torch", "ddp"}:
        quantized = replace(config, quantization="nf4", double_quant=True, kbit_preparation=True)
        yield "--quantization nf4 --double-quant", quantized


def _inference_changes(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    if config.weights_dtype != "int8":
        yield "--weights-dtype int8", replace(config, weights_dtype="int8")
    if config.micro_batch > 1:
        half = config.micro_batch // 2
        yield f"--micro-batch {half}", replace(config, micro_batch=half)
    if config.seq_len >= 256:
        yield f"--seq-len {config.seq_len // 2}", replace(config, seq_len=config.seq_len // 2)
    if config.kv_dtype not in {"fp8", "int8"}:
        yield "--kv-dtype fp8", replace(config, kv_dtype="fp8")
