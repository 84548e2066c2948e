"""From what was measured to efficiency curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

from vram_plan.bench.calibrate.micro import Product
from vram_plan.bench.calibrate.minimize import nelder_mead
from vram_plan.bench.calibrate.reference import Step
from vram_plan.estimator.speed.step_time import StepWork, step_work, time_of
from vram_plan.profiles.efficiency import SHARES, Curves
from vram_plan.profiles.gpus import GpuSpec

__all__ = ["Rates", "best_rate", "fit_products", "fit_steps"]

_WIDEST = 1.5
"""A share may exceed the peak where tensors stay in a cache."""
_BELIEF = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What matrix products reach: share of the peak, its half length, seconds lost to each."""

    share: float
    inner: float
    seconds: float


def best_rate(found: Iterable[Product], dtype: str) -> float:
    """The most operations per second that a product of this dtype reached."""
    return max(one.flops / one.seconds for one in found if one.dtype == dtype)


def fit_products(found: Sequence[Product], peak: float) -> Rates:
    """The curve of matrix products: seconds + flops · (1 + half / inner) / (share · peak)."""

    def cost(point: Sequence[float]) -> float:
        share, inner, seconds = (exp(value) for value in point)
        return sum(
            abs(
                log(
                    (seconds + one.flops * (1.0 + inner / one.inner) / (share * peak)) / one.seconds
                )
            )
            for one in found
        )

    start = [log(0.9), log(30.0), log(3e-6)]

    def believed(point: Sequence[float]) -> float:
        drift = sum((a - b) ** 2 for a, b in zip(point, start, strict=True))
        return cost(point) + _BELIEF * drift

    best = nelder_mead(believed, start, step=0.5, evaluations=400)
    share, inner, seconds = (exp(value) for value in best)
    return Rates(share=min(share, _WIDEST), inner=inner, seconds=seconds)


def fit_steps(steps: Sequence[Step], gpu: GpuSpec, before: Curves, names: Sequence[str]) -> Curves:
    """Let the reference steps decide what single kernels do not say: ``names`` of the curves."""
    works = [(step_work(replace(step.config, gpu=gpu)), step.seconds) for step in steps]

    def at(point: Sequence[float]) -> Curves:
        values: dict[str, Any] = {
            name: exp(value) for name, value in zip(names, point, strict=True)
        }
        for name in SHARES:
            if name in values:
                values[name] = min(values[name], _WIDEST)
        return replace(before, **values)

    start = [log(getattr(before, name)) for name in names]

    def cost(point: Sequence[float]) -> float:
        drift = sum((a - b) ** 2 for a, b in zip(point, start, strict=True))
        return sum(_miss(work, seconds, at(point)) for work, seconds in works) + _BELIEF * drift

    return at(nelder_mead(cost, start, step=0.4, evaluations=300))


def _miss(work: StepWork, seconds: float, curves: Curves) -> float:
    return abs(log(time_of(work, work.gpu, curves).seconds / seconds))
