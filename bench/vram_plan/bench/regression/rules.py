"""When a difference is a regression: of times by history or by pairs, of memory by size.

The thresholds come from simulation (``simulate``): previous-run comparisons, z-scores and t-tests
raise false alarms in 2–5 % of checks where nothing changed; medians with a floor of 3 % and a
confirmation in fewer than 0.1 %.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vram_plan.bench.regression.robust import median_interval, sigma

__all__ = [
    "BASELINE",
    "FLOOR",
    "LEAST_BASELINE",
    "NEW_RUNS",
    "PAIRS",
    "PREDICTION_POINTS",
    "RESERVED_SHARE",
    "STATUSES",
    "Verdict",
    "allocated_limit",
    "judge_history",
    "judge_memory",
    "judge_pairs",
    "judge_prediction",
]

STATUSES = ("regression", "suspect", "improvement", "ok", "insufficient", "censored")
BASELINE = 20
"""Runs before the new ones that a history is judged by."""
LEAST_BASELINE = 10
NEW_RUNS = 3
PAIRS = 5
FLOOR = 0.03
"""The smallest difference of times that is called one."""
_SIGMAS = 3.0
_ALLOCATED_SHARE = 0.01
_ALLOCATED_MOST_BYTES = 256 * 2**20
_ALLOCATED_SMALL_SHARE = 0.02
RESERVED_SHARE = 0.05
PREDICTION_POINTS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a rule says.

    Attributes:
        status: one of ``STATUSES``; ``suspect`` is a difference that was seen once.
        change: new / baseline − 1; None where nothing could be compared.
        threshold: the change beyond which it counts.
        baseline: median before.
        new: median now.
        runs: numbers compared, before and now.
        interval: of the change: from five runs on it holds the median in at least 90 % of cases,
            with fewer it is the range that was seen.
    """

    status: str
    change: float | None = None
    threshold: float | None = None
    baseline: float | None = None
    new: float | None = None
    runs: tuple[int, int] = (0, 0)
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of: {', '.join(STATUSES)}")


def judge_history(values: Sequence[float], *, new: int = NEW_RUNS, floor: float = FLOOR) -> Verdict:
    """Compare the last ``new`` values, oldest first, with the 20 before; larger is worse.

    A change beyond max(floor, 3 · 1.4826 · MAD / median) is suspect. It is a regression when it is
    seen twice, by two checks in a row or by running again: the last ``2 · new`` values together
    are beyond that against the 20 before them, and each half beyond the floor.
    """
    last, before = values[-new:], values[-2 * new : -new]
    earlier = values[max(0, len(values) - 2 * new - BASELINE) : len(values) - 2 * new]
    if len(last) == len(before) == new and len(earlier) >= LEAST_BASELINE:
        both = _against(earlier, [*before, *last], floor)
        halves = [statistics.median(half) / statistics.median(earlier) for half in (before, last)]
        if both.status == "suspect" and min(halves) > 1 + floor:
            return replace(both, status="regression")
    calm = values[max(0, len(values) - new - BASELINE) : len(values) - new]
    if len(last) < new or len(calm) < LEAST_BASELINE:
        return Verdict(status="insufficient", runs=(len(calm), len(last)))
    return _against(calm, last, floor)


def _against(calm: Sequence[float], last: Sequence[float], floor: float) -> Verdict:
    threshold = max(floor, _SIGMAS * sigma(calm) / statistics.median(calm))
    return _medians(calm, last, threshold, worse="suspect")


def _medians(
    before: Sequence[float], now: Sequence[float], threshold: float, *, worse: str
) -> Verdict:
    """Compare medians of positive figures."""
    base, new = statistics.median(before), statistics.median(now)
    change = new / base - 1
    return Verdict(
        status=worse if change > threshold else "improvement" if change < -threshold else "ok",
        change=change,
        threshold=threshold,
        baseline=base,
        new=new,
        runs=(len(before), len(now)),
        interval=_interval([value / base for value in now]),
    )


def _interval(ratios: Sequence[float]) -> tuple[float, float]:
    low, high, _ = median_interval(ratios) or (min(ratios), max(ratios), 0.0)
    return low - 1, high - 1


def judge_pairs(
    base: Sequence[float],
    head: Sequence[float],
    *,
    confirmation: tuple[Sequence[float], Sequence[float]] | None = None,
    floor: float = FLOOR,
) -> Verdict:
    """Compare interleaved pairs, one of each side in fresh processes; larger is worse.

    A batch whose median ratio is above 1 + floor with most pairs slower is suspect. A second batch
    confirms it where both together are still beyond the floor and the interval of their median does
    not reach 1: on a machine that is too busy nothing is told rather than the wrong thing.
    """
    verdict = _pairs(base, head, floor)
    if verdict.status != "suspect" or confirmation is None:
        return verdict
    whole = _pairs([*base, *confirmation[0]], [*head, *confirmation[1]], floor)
    told = whole.status == "suspect" and whole.interval is not None and whole.interval[0] > 0
    return replace(whole, status="regression" if told else "ok")


def _pairs(base: Sequence[float], head: Sequence[float], floor: float) -> Verdict:
    if len(base) != len(head):
        raise ValueError(f"pairs need as many runs of each side: {len(base)} and {len(head)}")
    if len(base) < NEW_RUNS:
        return Verdict(status="insufficient", runs=(len(base), len(head)))
    ratios = [b / a for a, b in zip(base, head, strict=True)]
    middle = statistics.median(ratios)
    interval = _interval(ratios)
    slower = sum(ratio > 1 for ratio in ratios) * 2 > len(ratios)
    status = "ok"
    if middle > 1 + floor and slower:
        status = "suspect"
    elif middle < 1 / (1 + floor) and interval[1] < 0:
        status = "improvement"
    return Verdict(
        status=status,
        change=middle - 1,
        threshold=floor,
        baseline=statistics.median(base),
        new=statistics.median(head),
        runs=(len(base), len(head)),
        interval=interval,
    )


def allocated_limit(baseline_bytes: float) -> float:
    """The growth of allocated bytes that is still none: max(1 %, min(256 MiB, 2 %)).

    Allocated bytes hardly vary between runs, so that the floor only has to allow for other
    kernels' workspaces.
    """
    small = min(_ALLOCATED_MOST_BYTES, _ALLOCATED_SMALL_SHARE * baseline_bytes)
    return max(_ALLOCATED_SHARE * baseline_bytes, small)


def judge_memory(
    baseline: Sequence[float],
    new: Sequence[float],
    *,
    reserved: bool = False,
    censored: bool = False,
) -> Verdict:
    """Compare bytes; nothing is confirmed, since they hardly vary.

    Args:
        baseline: bytes of runs before.
        new: bytes of runs now.
        reserved: of the allocator's pools, which vary by 5 %.
        censored: a reading near the capacity: the allocator fills what there is.
    """
    runs = (len(baseline), len(new))
    if censored:
        return Verdict(status="censored", runs=runs)
    if not baseline or not new:
        return Verdict(status="insufficient", runs=runs)
    base = statistics.median(baseline)
    limit = RESERVED_SHARE if reserved else allocated_limit(base) / base
    return _medians(baseline, new, limit, worse="regression")


def judge_prediction(baseline: Sequence[float], new: Sequence[float]) -> Verdict:
    """Compare the plan's error, predicted / measured − 1, with what it was: 2 points are too many.

    ``change`` is in points of |error|, not relative.
    """
    runs = (len(baseline), len(new))
    if not baseline or not new:
        return Verdict(status="insufficient", runs=runs)
    base, now = statistics.median(map(abs, baseline)), statistics.median(map(abs, new))
    change = now - base
    worse, better = change > PREDICTION_POINTS, change < -PREDICTION_POINTS
    return Verdict(
        status="regression" if worse else "improvement" if better else "ok",
        change=change,
        threshold=PREDICTION_POINTS,
        baseline=base,
        new=now,
        runs=runs,
    )
