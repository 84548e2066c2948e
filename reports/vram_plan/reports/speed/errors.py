"""Errors of step times, by source and by quality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vram_plan.reports.speed.rows import Timed

__all__ = ["Errors", "by_source", "summary"]

_HEADER = f"{'rows':34} {'n':>4} {'bias':>8} {'median':>8} {'p90':>8} {'max':>8}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors of some rows: predicted over measured seconds, less one.

    Attributes:
        name: which rows.
        signed: their errors.
    """

    name: str
    signed: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """The absolute error that so many of the rows do not exceed."""
        ordered = sorted(abs(each) for each in self.signed)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def bias(self) -> float:
        """The middle of the signed errors."""
        return sorted(self.signed)[len(self.signed) // 2]

    def line(self) -> str:
        """One line of the table."""
        figures = (self.bias, self.quantile(0.5), self.quantile(0.9), self.quantile(1.0))
        shown = " ".join(
            f"{figure:>+8.1%}" if i == 0 else f"{figure:>8.1%}" for i, figure in enumerate(figures)
        )
        return f"{self.name:34} {len(self.signed):>4} {shown}"


def by_source(found: Iterable[tuple[Timed, float]]) -> list[Errors]:
    """Errors by source and quality, and those of each quality together."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row, error in found:
        groups[f"{row.row.family} {row.quality}"].append(error)
        groups[f"~all {row.quality}"].append(error)
    return [
        Errors(name=name.removeprefix("~"), signed=tuple(groups[name])) for name in sorted(groups)
    ]


def summary(found: Iterable[tuple[Timed, float]]) -> str:
    """The table."""
    return "\n".join([_HEADER, *(errors.line() for errors in by_source(found))])
