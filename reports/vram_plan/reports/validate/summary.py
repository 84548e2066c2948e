"""Errors by stratum: how many, how large in the middle and at the end, and to which side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from vram_plan.reports.validate.judge import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The errors of some comparisons, as shares of the measured figure.

    Attributes:
        n: comparisons.
        median: of the absolute errors.
        signed: median of the errors with their sign: above 0 the plan says too much.
        p90: 90th percentile of the absolute errors (the smallest that 90 % do not exceed).
        p95: the 95th.
        max: the largest absolute error.
    """

    n: int
    median: float
    signed: float
    p90: float
    p95: float
    max: float


def spread(errors: Iterable[float]) -> Spread:
    """The spread of at least one error."""
    signed = sorted(errors)
    sizes = sorted(abs(error) for error in signed)
    return Spread(
        n=len(sizes),
        median=middle(sizes),
        signed=middle(signed),
        p90=percentile(sizes, 90),
        p95=percentile(sizes, 95),
        max=sizes[-1],
    )


def middle(ordered: list[float]) -> float:
    """The median of ordered numbers."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def percentile(ordered: list[float], share: int) -> float:
    """The smallest of ordered numbers that ``share`` percent do not exceed (nearest rank)."""
    return ordered[max(0, ceil(len(ordered) * share / 100) - 1)]


def _gpus(one: Comparison) -> str:
    gpus = one.plan.config.gpus
    return str(gpus) if gpus <= 8 else "9 or more"


def target(one: Comparison) -> str:
    """The class of rows a published target is for; empty for figures outside the targets."""
    row, config = one.row, one.plan.config
    if one.metric == "memory_bytes" or row.quality == "C":
        return ""
    if config.gpus == 1:
        return "one GPU"
    if "megatron" in config.engine:
        return "Megatron, hidden 2,048 up" if config.model.hidden_size >= 2048 else "Megatron, toy"
    return "several GPUs"


DIMENSIONS: dict[str, Callable[[Comparison], str]] = {
    "target": target,
    "source": lambda one: one.row.family,
    "family": lambda one: one.plan.model.model_type,
    "method": lambda one: one.plan.config.method,
    "engine": lambda one: one.row.engine or one.plan.config.engine,
    "quantization": lambda one: one.plan.config.quantization,
    "checkpointing": lambda one: one.plan.config.checkpointing,
    "loss": lambda one: one.plan.config.loss,
    "gpus": _gpus,
    "quality": lambda one: one.quality,
}
"""Dimension → the stratum of a comparison in it."""


def summarize(comparisons: Iterable[Comparison]) -> dict[str, Spread]:
    """Spreads by metric (``reserved_peak_bytes``) and stratum (``…/engine=fsdp1``)."""
    errors: dict[str, list[float]] = {}
    for one in comparisons:
        errors.setdefault(one.metric, []).append(one.error)
        for dimension, stratum in DIMENSIONS.items():
            word = stratum(one)
            if word:
                errors.setdefault(f"{one.metric}/{dimension}={word}", []).append(one.error)
    return {name: spread(found) for name, found in sorted(errors.items())}
