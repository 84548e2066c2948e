"""The best configurations of a space, without trying most of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vram_plan.estimator.search import tally
from vram_plan.estimator.search.by_memory import by_memory
from vram_plan.estimator.search.by_time import by_time
from vram_plan.estimator.search.cells import Cells
from vram_plan.estimator.search.needs import Needs
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.speed import Modelled, Speed
from vram_plan.estimator.search.standings import Standings
from vram_plan.estimator.search.task import Task
from vram_plan.estimator.search.wish import Candidate, Found, Wish

Progress = Callable[[int, int], None]
"""Told how many raw configurations are settled, and of how many."""


def search(
    space: Space, wish: Wish, speed: Speed | None = None, progress: Progress | None = None
) -> Found:
    """The best plans, their front, and what was ruled out; what it finds equals `exhaustive`."""
    with _without_rounds():
        return _search(space, wish, speed or Modelled(), progress)


@contextmanager
def _without_rounds() -> Iterator[None]:
    """Python's rounds for reference cycles are put off: a search leaves next to none."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _search(space: Space, wish: Wish, speed: Speed, progress: Progress | None) -> Found:
    counts, standings = tally.Tally(), Standings(wish)
    complete = True
    needs = Needs()
    try:
        cells = Cells(space, wish, counts)
        settle = by_memory if wish.objective == "memory" else by_time
        task = Task(cells, wish, standings, needs, speed)
        for found, count in settle(task):
            if isinstance(found, Candidate):
                standings.add(found)
            else:
                counts.add(found, count)
            if progress is not None:
                progress(counts.total + standings.count, space.raw)
    except KeyboardInterrupt:
        complete = False
        counts.add(tally.Out(tally.NOT_REACHED), space.raw - counts.total - standings.count)
    return Found(
        plans=standings.best(),
        front=standings.front(),
        ruled_out=counts.rows(),
        raw=space.raw,
        fitting=standings.count,
        examined=needs.computed,
        complete=complete,
    )
