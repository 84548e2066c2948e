"""Errors of a sweep by stratum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vram_plan.bench.proof.case import Result

__all__ = ["Stratum", "strata", "summarize", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """Errors of some results, as shares.

    Attributes:
        name: what they have in common.
        count: results.
        median: of the peak's absolute error; ``p95`` and ``largest`` likewise.
        component: the largest difference of a component, as a share of the peak.
    """

    name: str
    count: int
    median: float
    p95: float
    largest: float
    component: float


_AXES: dict[str, Callable[[Result], str]] = {
    "family": lambda r: r.family,
    "method": lambda r: r.method,
    "precision": lambda r: r.precision,
    "quantization": lambda r: r.options.get("quantization", "none"),
    "checkpointing": lambda r: r.options["checkpointing"],
    "offload": lambda r: r.options.get("offload", "none"),
    "attention": lambda r: r.options["attention"],
    "loss": lambda r: r.options["loss"],
    "optimizer": lambda r: r.options["optimizer"],
    "sharding": lambda r: f"{r.sharding} {r.options.get('zero', '')}".strip(),
    "size": lambda r: r.size,
}


def strata(results: Iterable[Result]) -> list[Stratum]:
    """All together, then every value of every axis."""
    ran = [result for result in results if result.outcome == "ok"]
    found = [summarize("all", ran)] if ran else []
    for axis, value_of in _AXES.items():
        for value in sorted({value_of(result) for result in ran}):
            same = [result for result in ran if value_of(result) == value]
            found.append(summarize(f"{axis} {value}", same))
    return found


def summarize(name: str, results: list[Result]) -> Stratum:
    """Errors of results that ran."""
    errors = sorted(abs(result.error) for result in results)
    return Stratum(
        name=name,
        count=len(errors),
        median=_quantile(errors, 0.5),
        p95=_quantile(errors, 0.95),
        largest=errors[-1],
        component=max(result.component_error for result in results),
    )


def _quantile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of the others do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(results: Iterable[Result]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| stratum | n | median | p95 | max | component max |"
    yield "|---|---:|---:|---:|---:|---:|"
    for s in strata(results):
        parts = (s.median, s.p95, s.largest, s.component)
        shown = " | ".join(f"{100 * part:.3f} %" for part in parts)
        yield f"| {s.name} | {s.count} | {shown} |"
