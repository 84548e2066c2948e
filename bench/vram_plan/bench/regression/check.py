"""The stored history judged: every series, every figure, and what a change is to be blamed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vram_plan.bench.regression.rules import (
    BASELINE,
    FLOOR,
    LEAST_BASELINE,
    NEW_RUNS,
    Verdict,
    judge_history,
    judge_memory,
    judge_prediction,
)
from vram_plan.bench.regression.series import METRICS, Point, Series, differences, series_of

__all__ = ["CAUSES", "Finding", "blamed", "check", "exit_code", "judge_bytes"]

CAUSES = ("code", "environment", "machine")
_TOGETHER = 3
"""Configurations that must move together before the machine is blamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure of one series.

    Attributes:
        series: the configuration, for a person.
        metric: one of ``METRICS``.
        verdict: what the rule says.
        cause: one of ``CAUSES`` where something changed.
        differences: of the surroundings since the baseline, in words.
    """

    series: str
    metric: str
    verdict: Verdict
    cause: str | None = None
    differences: tuple[str, ...] = ()


def check(
    rows: Iterable[Mapping[str, Any]],
    *,
    new: int = NEW_RUNS,
    floors: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Judge the newest runs of every series against those before.

    Args:
        rows: of the store's index, oldest first.
        new: the newest runs of a series that are judged together.
        floors: series key → smallest change of its time that counts, where ``bench aa`` has
            measured the machine's noise.
    """
    found = []
    for series in series_of(rows):
        floor = (floors or {}).get(series.key, FLOOR)
        found += [_finding(series, metric, new, floor) for metric in METRICS]
    seen = [one for one in found if one is not None]
    return _blame_machine(seen)


def exit_code(findings: Sequence[Finding]) -> int:
    """0 fine, 1 a regression, 3 nothing could be judged."""
    statuses = {finding.verdict.status for finding in findings}
    if "regression" in statuses:
        return 1
    return 3 if statuses <= {"insufficient", "censored"} else 0


def _finding(series: Series, metric: str, new: int, floor: float) -> Finding | None:
    points = [point for point in series.points if metric in point.values]
    if not points:
        return None
    verdict = _judge(points, metric, new, floor)
    # The change may lie within the newest runs of two checks: the oldest of the baseline counts.
    before = points[-2 * new - LEAST_BASELINE :][0]
    return blamed(series.name, metric, verdict, (before, points[-1]))


def blamed(name: str, metric: str, verdict: Verdict, sides: tuple[Point, Point]) -> Finding:
    """The finding; of a change, with how the software of the two sides differs."""
    if verdict.status not in ("regression", "suspect"):
        return Finding(series=name, metric=metric, verdict=verdict)
    changed = differences(sides[0].versions, sides[1].versions)
    return Finding(
        series=name,
        metric=metric,
        verdict=verdict,
        cause="environment" if changed else "code",
        differences=changed,
    )


def _judge(points: Sequence[Point], metric: str, new: int, floor: float) -> Verdict:
    values = [point.values[metric] for point in points]
    if metric == "step_seconds":
        return judge_history(values, new=new, floor=floor)
    before, now = values[-new - BASELINE : -new], values[-new:]
    if len(now) < new or len(before) < new:
        return Verdict(status="insufficient", runs=(len(before), len(now)))
    censored = any(point.censored for point in points[-new - BASELINE :])
    return judge_bytes(metric, before, now, censored=censored)


def judge_bytes(
    metric: str, before: Sequence[float], now: Sequence[float], *, censored: bool
) -> Verdict:
    """Judge any metric but the time."""
    if metric == "prediction_error":
        return judge_prediction(before, now)
    pools = metric in ("reserved_bytes", "device_bytes")
    return judge_memory(before, now, reserved=pools, censored=censored and pools)


def _blame_machine(findings: list[Finding]) -> list[Finding]:
    """When the times of all configurations move together, no commit did it."""
    judged = [
        one
        for one in findings
        if one.metric == "step_seconds" and one.verdict.status not in ("insufficient", "censored")
    ]
    slow = [one for one in judged if one.verdict.status in ("regression", "suspect")]
    if len(slow) < _TOGETHER or len(slow) < len(judged):
        return findings
    return [
        replace(one, cause="machine") if one in slow and one.cause == "code" else one
        for one in findings
    ]
