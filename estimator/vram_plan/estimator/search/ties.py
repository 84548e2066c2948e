"""Plans that come to the same: one is shown, the others are named with it.

On one machine, ways to shard or to offload often differ in next to nothing that the objective sees.
Plans on the same machine (for the least memory on as many GPUs of whatever kind) tie with the best
of them where its figure is at most `TOLERANCE` better than theirs, or is printed the same as that
limit. Of those whose figure is printed like the best one's (of small figures five digits) the one
that needs the least memory is shown, of those the cheapest, then the first of the space. All the
others are named in the order of the objective, which is exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import floor, inf, log10

from vram_plan.estimator.search.wish import MILLION, Candidate, Wish

TOLERANCE = 0.001
"""Share of a figure by which plans may differ and still tie: far below the error of any plan."""
_DIGITS = 5
"""Of a figure that is printed with fewer."""
_GIB = 2**30


def _rounded(value: float, decimals: int) -> float:
    """As it is printed, or to five digits, whichever is nearer."""
    if not 0 < value < inf:
        return value
    return round(value, max(decimals, _DIGITS - 1 - floor(log10(value))))


_FIGURES: dict[str, Callable[[float], float]] = {
    "memory": lambda nbytes: _rounded(nbytes / _GIB, 1),
    "cost": lambda usd: _rounded(usd * MILLION, 3),
    "throughput": lambda seconds: -_rounded(1 / seconds, 0),
    "time": lambda seconds: -_rounded(1 / seconds, 0),
}


def figure(objective: str, worth: float) -> float:
    """What is printed of a worth: it never falls where ``worth`` rises."""
    return _FIGURES[objective](worth) if worth else -inf


def limit(worth: float) -> float:
    """The last worth that ties with one."""
    return worth * (1 + TOLERANCE)


def place(objective: str, plan: Candidate) -> Hashable:
    """Equal for plans that may tie: of one machine."""
    config = plan.config
    name = config.gpu.name if config.gpu and objective != "memory" else ""
    return (config.gpus, name)


def leaders(objective: str, worths: Sequence[float], top: int) -> list[float]:
    """Of the worths on one machine, least first, the first few that begin a group of ties."""
    found: list[float] = []
    place, told = 0, partial(figure, objective)
    while place < len(worths) and len(found) < top:
        found.append(worths[place])
        place = bisect_right(worths, told(limit(found[-1])), lo=place + 1, key=told)
    return found


def grouped(plans: Iterable[Candidate], wish: Wish) -> tuple[Candidate, ...]:
    """The best plans, best first, each with those that tie with it."""
    objective = wish.objective
    groups: list[list[Candidate]] = []
    latest: dict[Hashable, tuple[float, list[Candidate]]] = {}
    for plan in sorted(plans, key=lambda plan: plan.rank(objective)):
        where, worth = place(objective, plan), plan.worth(objective)
        told, group = latest.get(where, (-inf, []))
        if not group or figure(objective, worth) > told:
            group = []
            latest[where] = (figure(objective, limit(worth)), group)
            groups.append(group)
        group.append(plan)
    return tuple(_one_of(objective, group) for group in groups[: wish.top])


def _one_of(objective: str, group: list[Candidate]) -> Candidate:
    """The one that is shown."""
    best = figure(objective, group[0].worth(objective))
    alike = [plan for plan in group if figure(objective, plan.worth(objective)) == best]
    shown = min(alike, key=lambda plan: plan.rank("memory"))
    return replace(shown, ties=tuple(plan for plan in group if plan is not shown))
