"""Plans that come to the same: one is shown, the others are named with it.

On one machine, ways to shard or to offload often differ in nothing that the objective sees. Plans
tie where the objective's figure is the same as far as it is printed (of small ones five digits) on
the same machine; for the least memory on as many GPUs of whatever kind. Of plans that tie the one
that needs the least memory is shown, of those the cheapest, then the first of the space.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from math import floor, inf, log10

from vram_plan.estimator.search.wish import MILLION, Candidate, Wish

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
    """What plans are told apart by: it never falls where ``worth`` rises."""
    return _FIGURES[objective](worth) if worth else -inf


def kind(objective: str, plan: Candidate) -> Hashable:
    """Equal for plans that tie."""
    config = plan.config
    name = config.gpu.name if config.gpu and objective != "memory" else ""
    return (config.gpus, name, figure(objective, plan.worth(objective)))


def grouped(plans: Iterable[Candidate], wish: Wish) -> tuple[Candidate, ...]:
    """The best plans, best first, each with those that tie with it."""
    objective = wish.objective
    found: dict[Hashable, list[Candidate]] = defaultdict(list)
    for plan in sorted(plans, key=lambda plan: plan.rank(objective)):
        found[kind(objective, plan)].append(plan)
    return tuple(_one_of(alike) for alike in list(found.values())[: wish.top])


def _one_of(alike: list[Candidate]) -> Candidate:
    """The one that is shown."""
    shown = min(alike, key=lambda plan: plan.rank("memory"))
    return replace(shown, ties=tuple(plan for plan in alike if plan is not shown))
