"""Fit efficiency curves on rows, and say how far they are off on sources they did not see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import exp, log, sqrt
from typing import Any

from vram_plan.bench.calibrate.minimize import nelder_mead
from vram_plan.estimator.speed.step_time import time_of
from vram_plan.profiles.efficiency import SHARES, Curves
from vram_plan.reports.speed.families import PRIORS, Family
from vram_plan.reports.speed.rows import Timed

__all__ = ["error", "fit_family", "held_out", "start_of"]

EVALUATIONS = 360
MOST_OF_A_SOURCE = 16
_FARTHEST = 0.5
"""Logarithm of an error beyond which a row counts no more: something else is the matter."""
_BELIEF = 0.05
_MOST = 0.97


def error(row: Timed, curves: Curves) -> float:
    """Predicted over measured seconds, less one."""
    return time_of(row.work, row.work.gpu, curves).seconds / row.seconds - 1.0


def start_of(family: Family, known: Mapping[str, Curves]) -> Curves:
    """What is believed of a family before its rows."""
    values: dict[str, Any] = {name: family.prior(name).value for name in PRIORS}
    if family.like in known:
        like = known[family.like]
        values |= {name: getattr(like, name) for name in PRIORS if name not in family.fitted}
    return Curves(
        name=family.name,
        architecture=family.architecture,
        kind=family.kind,
        gpus=family.gpus,
        **values,
    )


def fit_family(
    family: Family, rows: Sequence[Timed], known: Mapping[str, Curves], evaluations: int
) -> Curves:
    """The curves that fit the rows best, every source counting by the root of its rows."""
    before = start_of(family, known)
    if not rows:
        return before
    rows = _thinned(rows)
    sizes = Counter(row.row.family for row in rows)

    def cost(point: Sequence[float]) -> float:
        curves = _at(before, family, point)
        total = sum(
            min(abs(log(1.0 + error(row, curves))), _FARTHEST) / sqrt(sizes[row.row.family])
            for row in rows
        )
        return total + _BELIEF * sum(
            ((value - log(family.prior(name).value)) / family.prior(name).width) ** 2
            for name, value in zip(family.fitted, point, strict=True)
        )

    start = [log(family.prior(name).value) for name in family.fitted]
    best = nelder_mead(cost, start, step=0.15, evaluations=evaluations)
    return replace(_at(before, family, best), rows=len(rows))


def _thinned(rows: Sequence[Timed]) -> list[Timed]:
    """At most so many rows of a source, evenly over it: neighbours say the same."""
    by_source: dict[str, list[Timed]] = {}
    for row in rows:
        by_source.setdefault(row.row.family, []).append(row)
    found: list[Timed] = []
    for mine in by_source.values():
        steps = max(1, len(mine) // MOST_OF_A_SOURCE)
        found += mine[::steps]
    return found


def _at(before: Curves, family: Family, point: Sequence[float]) -> Curves:
    values: dict[str, Any] = {
        name: exp(value) for name, value in zip(family.fitted, point, strict=True)
    }
    for name in SHARES:
        if name in values:
            values[name] = min(values[name], _MOST)
    return replace(before, **values)


def held_out(
    family: Family, rows: Sequence[Timed], known: Mapping[str, Curves], evaluations: int
) -> Iterable[tuple[Timed, float]]:
    """Every row with its error under curves that were fitted without its source."""
    for source in sorted({row.row.family for row in rows}):
        others = [row for row in rows if row.row.family != source]
        curves = fit_family(family, others, known, evaluations)
        for row in rows:
            if row.row.family == source:
                yield row, error(row, curves)
