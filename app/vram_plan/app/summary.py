"""What every format says in words: the configuration, the verdict, the GPUs worth listing."""

from __future__ import annotations

from vram_plan.app.units import GIB, count, signed_gib
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fit import Fit
from vram_plan.estimator.planner import Plan

MOST_GPUS = 10


def headline(plan: Plan) -> str:
    """The configuration in one line."""
    config = plan.config
    parts = [f"{plan.model.name} ({count(plan.parameters)} parameters)"]
    if config.training:
        learned = plan.trainable_parameters
        share = 100 * learned / plan.parameters
        parts.append(
            f"{config.method}"
            + (
                f", {count(learned)} trainable ({share:.2g} %)"
                if learned != plan.parameters
                else ""
            )
        )
    else:
        parts.append("inference")
    parts.append(f"{_engine(config)} on {config.gpus} GPU" + ("s" if config.gpus > 1 else ""))
    parts.append(f"{config.micro_batch} × {config.seq_len:,} tokens per GPU")
    return " · ".join(parts)


def _engine(config: TrainConfig) -> str:
    if config.engine == "deepspeed":
        return f"ZeRO-{config.zero}"
    if config.fsdp:
        return f"{config.engine} {config.fsdp}"
    degrees = [
        f"{name} {getattr(config, name)}"
        for name in ("tp", "pp", "cp", "ep")
        if getattr(config, name) > 1
    ]
    return " ".join([config.engine, *degrees])


def verdict_line(plan: Plan) -> str:
    """Whether it fits, in words."""
    if plan.config.gpu is not None:
        fit = plan.fits[0]
        return f"{fit.gpu}: {fit.verdict}, headroom {signed_gib(fit.headroom_bytes)}"
    fitting = [fit for fit in plan.fits if fit.fits]
    if not fitting:
        return f"fits on none of the {len(plan.fits)} GPUs in the catalogue"
    return f"fits on {len(fitting)} of the {len(plan.fits)} GPUs in the catalogue"


def fit_rows(plan: Plan) -> tuple[Fit, ...]:
    """GPUs around the limit: the largest that do not fit and the smallest that do."""
    if plan.config.gpu is not None:
        return plan.fits
    distinct = _distinct(plan.fits)
    below = [fit for fit in distinct if not fit.fits]
    above = [fit for fit in distinct if fit.fits]
    return tuple(below[-3:] + above[: MOST_GPUS - 3])


def _distinct(found: tuple[Fit, ...]) -> list[Fit]:
    """One GPU for each size of memory: the catalogue has many of 24 and 80 GiB."""
    seen: dict[int, Fit] = {}
    for fit in found:
        seen.setdefault(round(fit.usable_bytes / GIB), fit)
    return sorted(seen.values(), key=lambda fit: fit.usable_bytes)


def option_lines(plan: Plan) -> list[str]:
    """Resolved options and assumptions, to be read when something surprises."""
    config = plan.config
    recipe = f" ({config.fp8_recipe})" if config.precision == "fp8" else ""
    shown = {
        "engine": config.engine,
        "precision": f"{config.precision}{recipe}",
        "weights": config.weights_dtype,
        "optimizer": config.optimizer,
        "checkpointing": config.checkpointing,
        "attention": config.attention,
        "loss": config.loss,
        "grad-accum": config.grad_accum,
    }
    line = "options: " + ", ".join(f"{name} {value}" for name, value in shown.items())
    lines = [line, *(f"assumed: {text}" for text in config.assumptions)]
    if config.node is not None and plan.memory.host_bytes:
        memory = f"{config.node.host_memory_bytes / GIB:,.0f} GiB"
        lines.append(f"host: {config.node.name} with {memory}; {config.node.note}")
    return lines
