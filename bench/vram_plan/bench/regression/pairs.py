"""A/B: the same suite on two sides in turn, and what the pairs say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vram_plan.bench.regression.check import Finding, blamed, judge_bytes
from vram_plan.bench.regression.rules import PAIRS, Verdict, judge_pairs
from vram_plan.bench.regression.series import METRICS, Point, series_of
from vram_plan.bench.regression.sides import Side, run_side

__all__ = ["compare_sides", "environment_of", "interleaved", "judge"]

Rows = list[dict[str, Any]]
Batch = list[tuple[Rows, Rows]]
Say = Callable[[str], None]


def compare_sides(
    base: Side,
    head: Side,
    arguments: Sequence[str],
    *,
    pairs: int = PAIRS,
    say: Say = lambda text: None,
) -> list[Finding]:
    """Run pairs; where a time looks worse, as many again to confirm it."""
    first = interleaved(base, head, arguments, pairs=pairs, say=say)
    findings = judge(first)
    if not any(one.verdict.status == "suspect" for one in findings):
        return findings
    say("slower: running again to confirm")
    return judge(first, interleaved(base, head, arguments, pairs=pairs, say=say))


def interleaved(base: Side, head: Side, arguments: Sequence[str], *, pairs: int, say: Say) -> Batch:
    """Run both sides in turn, the first one changing, so that drift hits both alike."""
    batch: Batch = []
    for number in range(pairs):
        say(f"pair {number + 1} of {pairs}")
        if number % 2:
            after, before = run_side(head, arguments), run_side(base, arguments)
        else:
            before, after = run_side(base, arguments), run_side(head, arguments)
        batch.append((before, after))
    return batch


def judge(first: Batch, second: Batch | None = None) -> list[Finding]:
    """Every figure of every configuration that both sides ran."""
    points = [_points(batch) for batch in (first, second) if batch is not None]
    found = []
    for key, (name, _, _) in points[0].items():
        batches = [some[key][1:] for some in points if key in some]
        found += [_finding(name, metric, batches) for metric in METRICS]
    return [one for one in found if one is not None]


Points = tuple[str, list[Point], list[Point]]


def _points(batch: Batch) -> dict[str, Points]:
    """Configuration → name, points of base, points of head; of pairs that are whole."""
    found: dict[str, Points] = {}
    for base, head in batch:
        sides = [{one.key: one for one in series_of(rows)} for rows in (base, head)]
        for key in sides[0].keys() & sides[1].keys():
            before, after = (side[key].points[-1] for side in sides)
            _, bases, heads = found.setdefault(key, (sides[0][key].name, [], []))
            bases.append(before)
            heads.append(after)
    return found


def _finding(
    name: str, metric: str, batches: list[tuple[list[Point], list[Point]]]
) -> Finding | None:
    values = [
        (_values(base, metric), _values(head, metric))
        for base, head in batches
        if all(metric in point.values for point in (*base, *head))
    ]
    if not values:
        return None
    points = [point for batch in batches for side in batch for point in side]
    verdict = _judge(metric, values, censored=any(point.censored for point in points))
    return blamed(name, metric, verdict, (batches[0][0][-1], batches[0][1][-1]))


def _values(points: Sequence[Point], metric: str) -> list[float]:
    return [point.values[metric] for point in points]


def _judge(metric: str, batches: list[tuple[list[float], list[float]]], censored: bool) -> Verdict:
    if metric == "step_seconds":
        return judge_pairs(*batches[0], confirmation=batches[1] if len(batches) > 1 else None)
    base = [value for batch in batches for value in batch[0]]
    head = [value for batch in batches for value in batch[1]]
    return judge_bytes(metric, base, head, censored=censored)


def environment_of(pairs: Sequence[str]) -> Mapping[str, str]:
    """``NAME=VALUE`` words as variables.

    Raises:
        ValueError: if one has no name or no sign between.
    """
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not name or not sign:
            raise ValueError(f"{pair!r}: write NAME=VALUE")
        found[name] = value
    return found
