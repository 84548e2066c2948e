"""The kernels of one segment, played for them alone or noted while it is played for its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from vram_plan.estimator.costs import BESIDE
from vram_plan.estimator.simulate import play
from vram_plan.estimator.speed.work import Work, WorkLog

if TYPE_CHECKING:
    from vram_plan.estimator.costs import Cost, Run

__all__ = ["noting", "worked"]

_NOTED: dict[Run, Work] = {}


@lru_cache(maxsize=1024)
def worked(run: Run) -> Work:
    """The kernels of one segment, forward and back."""
    if run not in _NOTED:
        _note(run)
    return _NOTED.pop(run)


@contextmanager
def noting() -> Iterator[None]:
    """What is simulated meanwhile leaves its kernels to `worked`: one run on the tape, not two."""
    BESIDE.append(_note)
    try:
        yield
    finally:
        BESIDE.pop()
        _NOTED.clear()


def _note(run: Run) -> Cost:
    log = WorkLog(run)
    cost = play(run, work=log)
    _NOTED[run] = log.work
    return cost
