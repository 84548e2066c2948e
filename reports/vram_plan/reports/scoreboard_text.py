"""The scoreboard as tables of words and as plain figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vram_plan.reports.scoreboard import COUNTERS, Standing, scoreboard
from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.view import Grid

__all__ = ["HEADERS", "Board", "as_grid", "as_json", "boards", "percent"]

TITLES = {
    "allocated_peak_bytes": "peaks of PyTorch's allocator",
    "reserved_peak_bytes": "peaks of what the caching allocator reserved",
    "device_used_bytes": "readings of the device",
}
HEADERS = (
    "estimator",
    "can express",
    "median error",
    "90 % within",
    "worst",
    "within 5 %",
    "within 10 %",
    "ours on these",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One counter's scoreboard.

    Attributes:
        counter: the measured column.
        standings: the plan first.
    """

    counter: str
    standings: tuple[Standing, ...]

    @property
    def title(self) -> str:
        """What is compared."""
        return TITLES[self.counter]


def boards(comparisons: Iterable[Comparison]) -> list[Board]:
    """A scoreboard for each counter that has figures."""
    all_of_them = list(comparisons)
    found = []
    for counter in COUNTERS:
        standings = tuple(scoreboard(all_of_them, counters=(counter,)))
        if standings[0].expressed:
            found.append(Board(counter=counter, standings=standings))
    return found


def percent(share: float) -> str:
    """A share for a person: ``0.34 %``, ``7.3 %``, ``46 %``, ``1,123 %``."""
    size = abs(share)
    digits = 2 if size < 0.00995 else 1 if size < 0.0995 else 0
    return f"{share * 100:,.{digits}f} %"


def as_grid(board: Board) -> Grid:
    """A row of words for each estimator."""
    return Grid(
        title=board.title, heads=HEADERS, rows=tuple(_row(one) for one in board.standings), left=1
    )


def _row(one: Standing) -> tuple[str, ...]:
    name = f"{one.name} {one.version}".strip()
    expressed = f"{one.expressed} of {one.asked}"
    if one.errors is None:
        return (name, expressed, *[""] * 6)
    ours = percent(one.ours.median) if one.ours and one.version else ""
    return (
        name,
        expressed,
        percent(one.errors.median),
        percent(one.errors.p90),
        percent(one.errors.max),
        f"{one.within_5:.0%}".replace("%", " %"),
        f"{one.within_10:.0%}".replace("%", " %"),
        ours,
    )


def as_json(found: Iterable[Board]) -> dict[str, Any]:
    """Counter → estimators with their figures as plain numbers."""
    return {
        board.counter: [
            {
                "name": one.name,
                "version": one.version,
                "asked": one.asked,
                "expressed": one.expressed,
                "median": one.errors.median if one.errors else None,
                "signed": one.errors.signed if one.errors else None,
                "p90": one.errors.p90 if one.errors else None,
                "max": one.errors.max if one.errors else None,
                "within_5": one.within_5 if one.errors else None,
                "within_10": one.within_10 if one.errors else None,
                "ours_median": one.ours.median if one.ours else None,
                "cannot": dict(one.reasons),
                "ignores": dict(one.ignored),
            }
            for one in board.standings
        ]
        for board in found
    }
