"""A/A: the same thing again and again, to learn what this machine's noise is."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vram_plan.bench.regression.robust import coefficient_of_variation, lag_1, sigma
from vram_plan.bench.regression.rules import FLOOR
from vram_plan.bench.regression.series import series_of

__all__ = ["Noise", "measure_noise", "noise_of"]

_SIGMAS = 3.0
_MEDIAN_OF_THREE = 0.67
"""Standard deviation of the median of three, in standard deviations of one (normal noise)."""
_OUTLIER_SIGMAS = 4.0
_DETECTED_SIGMAS = 1.645
"""How far beyond the threshold a change must lie to be seen in 95 % of checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Of one configuration's step time.

    Attributes:
        series: the configuration, for a person.
        key: its key.
        runs: how many.
        variation: coefficient of variation between runs.
        drift: correlation of a run with the next.
        outliers: share of runs beyond four standard deviations.
        floor: the smallest change that is to count.
        detectable: the smallest change that a check finds in 95 % of cases.
    """

    series: str
    key: str
    runs: int
    variation: float
    drift: float
    outliers: float
    floor: float
    detectable: float


def noise_of(seconds: Sequence[float], *, series: str = "", key: str = "") -> Noise:
    """What repeated runs of one configuration say.

    floor = max(3 %, 3 · CV of medians of three); detectable = floor + 1.645 · that CV.
    """
    if len(seconds) < 2:
        raise ValueError("noise needs two runs at least")
    middle, spread = statistics.median(seconds), sigma(seconds)
    far = sum(abs(value - middle) > _OUTLIER_SIGMAS * spread for value in seconds) if spread else 0
    variation = coefficient_of_variation(seconds)
    of_medians = _MEDIAN_OF_THREE * variation
    floor = max(FLOOR, _SIGMAS * of_medians)
    return Noise(
        series=series,
        key=key,
        runs=len(seconds),
        variation=variation,
        drift=lag_1(seconds),
        outliers=far / len(seconds),
        floor=floor,
        detectable=floor + _DETECTED_SIGMAS * of_medians,
    )


def measure_noise(rows: Iterable[Mapping[str, Any]]) -> list[Noise]:
    """Of every configuration in the rows that ran twice at least."""
    found = []
    for series in series_of(rows):
        seen = [p.values["step_seconds"] for p in series.points if "step_seconds" in p.values]
        if len(seen) > 1:
            found.append(noise_of(seen, series=series.name, key=series.key))
    return found
