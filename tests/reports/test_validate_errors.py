"""Today's errors on the project's own rows, by stratum: a change that worsens one fails.

Errors may only shrink. After a change that improves them write the new ones down with
``python tests/reports/test_validate_errors.py``, and look at what else it moved.
"""

import csv
from functools import cache
from pathlib import Path
from zlib import crc32

import pytest

from vram_plan.profiles.measured import read_rows
from vram_plan.reports.validate.run import Validation, validate
from vram_plan.reports.validate.summary import Spread, summarize

PINS = Path(__file__).with_name("pinned_errors.csv")
COLUMNS = ("stratum", "n", "median", "p90", "max")
CACHED, EVERY = ("reserved_peak_bytes", "device_used_bytes"), 10
DIMENSIONS = ("", "target", "source", "method", "engine", "quantization", "checkpointing", "loss")
ROOM = 0.002
"""Rounding of the published figures moves an error by less than this."""


@cache
def found() -> Validation:
    return validate(read_rows())


@cache
def strata() -> dict[str, Spread]:
    """Spreads by metric and by the larger strata.

    Reserved and device figures replay the allocator, which takes its time: of those one row in
    `EVERY` is looked at.
    """
    exact = [one for one in found().comparisons if one.metric.startswith("allocated")]
    cached = [
        one
        for one in found().comparisons
        if one.metric in CACHED and crc32(one.row.id.encode()) % EVERY == 0
    ]
    named = summarize(exact) | {
        f"{name}, one in {EVERY}": one for name, one in summarize(cached).items()
    }
    return {name: one for name, one in named.items() if dimension(name) in DIMENSIONS}


def dimension(name: str) -> str:
    return name.partition("/")[2].partition("=")[0]


def pins() -> dict[str, dict[str, str]]:
    with PINS.open(encoding="utf-8", newline="") as file:
        return {row["stratum"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("stratum", pins())
def test_no_error_grows(stratum: str) -> None:
    pinned, now = pins()[stratum], strata().get(stratum)
    assert now is not None, "rows of this stratum are not predicted any more"
    assert now.n >= int(pinned["n"]), "fewer rows of this stratum are predicted"
    for name in ("median", "p90", "max"):
        assert getattr(now, name) <= float(pinned[name]) + ROOM, name


def test_most_good_rows_are_predicted() -> None:
    """A reading of a run that ended early has no error: such rows are judged by their outcome."""
    assert found().share >= 0.85
    good = [row for row in found().rows if row.quality != "C" and row.has_memory]
    whole = [row for row in good if row.outcome == "ok"]
    compared = {one.row.id for one in found().comparisons}
    judged = {one.row.id for one in found().outcomes}
    assert sum(row.id in compared for row in whole) >= 0.9 * len(whole)
    assert sum(row.id in compared | judged for row in good) >= 0.9 * len(good)
    assert not found().invalid


def test_every_row_is_somewhere_and_none_is_lost() -> None:
    named = {one.row.id for one in found().comparisons}
    judged = {one.row.id for one in found().outcomes}
    skipped = {one.row.id for one in found().skipped}
    assert named | judged | skipped == {row.id for row in found().rows}
    assert not skipped & (named | judged)


def write_pins() -> None:
    """Write today's errors down."""
    with PINS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, one in strata().items():
            figures = (one.median, one.p90, one.max)
            writer.writerow((name, one.n, *(f"{figure:.4f}" for figure in figures)))


if __name__ == "__main__":
    write_pins()
