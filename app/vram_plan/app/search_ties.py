"""Plans that come to the same as one that is shown, in a line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from vram_plan.app.search_options import spelled
from vram_plan.estimator.search.space import Assignment, Space
from vram_plan.estimator.search.ties import TOLERANCE
from vram_plan.estimator.search.wish import Candidate, Wish
from vram_plan.profiles.gpus import GpuSpec

_SAME = {"throughput": "speed", "time": "speed", "cost": "cost", "memory": "memory"}
_MOST_NAMED = 4
NEARLY = f"to {100 * TOLERANCE:g} %"
"""How far equal."""


def also(space: Space, wish: Wish, plan: Candidate) -> str:
    """``; also --zero 1, 2: same speed to 0.1 %``, to end a line; empty where nothing ties."""
    if not plan.ties:
        return ""
    return f"; also {'; '.join(_changes(space, plan))}: same {_SAME[wish.objective]} {NEARLY}"


def _changes(space: Space, plan: Candidate) -> Iterator[str]:
    """What differs, option by option; of what differs in several, what these do not tell."""
    mine = space.at(plan.order)
    differ = [_differing(mine, space.at(other.order)) for other in plan.ties]
    alone: dict[str, list[object]] = defaultdict(list)
    for (name, value), *others in differ:
        if not others:
            alone[name].append(value)
    for name, values in alone.items():
        yield spelled(name, _listed([_word(value) for value in values]))
    several = [
        " ".join(spelled(name, value) for name, value in changed)
        for changed in differ
        if not all(value in alone[name] for name, value in changed)
    ]
    if several:
        yield _listed(several)


def _differing(mine: Assignment, its: Assignment) -> list[tuple[str, object]]:
    return [(name, value) for name, value in its.items() if value != mine[name]]


def _listed(words: list[str]) -> str:
    more = len(words) - _MOST_NAMED
    return ", ".join(words[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _word(value: object) -> str:
    if value is None:
        return "none"
    return value.name if isinstance(value, GpuSpec) else str(value)
