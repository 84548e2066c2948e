"""What a fit says of a source it has not seen, beside what it says of the same rows when it has.

Rows of one source share people, machines and habits, so a constant that only holds within a source
shows here: its error without the source is far above the one with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from vram_plan.reports.crossfit import Crossfit, predict
from vram_plan.reports.readings import Reading, crossfits, nearest

__all__ = ["SourceError", "source_errors"]

ALLOWED_FACTOR, ALLOWED_ERROR = 2.0, 0.02
FEWEST = 5
"""Readings of a source below which a median says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceError:
    """The middle errors of one source's readings.

    Attributes:
        source: family of the rows.
        rows: its readings.
        seen: median absolute error of a fit on all readings.
        unseen: the same of a fit without the source.
    """

    source: str
    rows: int
    seen: float
    unseen: float

    @property
    def holds(self) -> bool:
        """Whether the fit says of other sources nearly what it says of its own."""
        return self.unseen <= max(ALLOWED_FACTOR * self.seen, ALLOWED_ERROR)


def source_errors(readings: Sequence[Reading]) -> list[SourceError]:
    """Every source with enough readings, judged with and without it."""
    whole = crossfits(readings)
    found = []
    for source in sorted({reading.source for reading in readings}):
        own = [reading for reading in readings if reading.source == source]
        others = crossfits([reading for reading in readings if reading.source != source])
        seen, unseen = _errors(own, whole), _errors(own, others)
        if len(unseen) >= FEWEST:
            found.append(
                SourceError(
                    source=source, rows=len(unseen), seen=median(seen), unseen=median(unseen)
                )
            )
    return found


def _errors(readings: Iterable[Reading], found: Mapping[str, Crossfit]) -> list[float]:
    errors = []
    for reading in readings:
        stratum = nearest(reading.stratum, found)
        if stratum:
            said = predict(reading.sample, found[stratum].coefficients)
            errors.append(abs(said / reading.sample.measured - 1))
    return errors
