"""What every printed form of a validation shows, as cells of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.outcomes import VERDICTS, confusion
from vram_plan.reports.validate.run import Validation, worst
from vram_plan.reports.validate.summary import Spread, summarize

GIB = 2**30
SHORT = {
    "allocated_peak_bytes": "allocated",
    "allocated_final_bytes": "after the step",
    "reserved_peak_bytes": "reserved",
    "device_used_bytes": "device",
    "memory_bytes": "unknown counter",
    "step_seconds": "step time",
    "tokens_per_second_per_gpu": "tokens/s",
    "samples_per_second": "samples/s",
}
"""Measured column → what a person calls it."""
SPREAD_HEAD = ("n", "median", "signed", "p90", "p95", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table: a title, heads, rows of text; the first ``left`` columns are words."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def headline(found: Validation) -> str:
    """What was read, predicted and left."""
    return (
        f"{len(found.rows):,} rows: {len({one.row.id for one in found.comparisons}):,} compared "
        f"({len(found.comparisons):,} figures), {len(found.outcomes):,} outcomes judged, "
        f"{len(found.skipped):,} skipped, {len(found.invalid):,} invalid"
    )


def coverage(found: Validation) -> str:
    """The share of the good rows that the plan can express."""
    return f"{found.share:.1%} of the rows of quality A and B with a memory figure are predicted"


def grids(found: Validation, *, count: int) -> Iterator[Grid]:
    """Every table, in the order in which a person asks."""
    summary = summarize(found.comparisons)
    if summary:
        yield _by_target(summary)
        for metric in SHORT:
            if metric in summary:
                yield _by_stratum(summary, metric)
        worst_ones = (_worst(found, count), _worst_speeds(found, count))
        yield from (grid for grid in worst_ones if grid.rows)
    if found.outcomes:
        yield _outcomes(found)
    if found.skipped:
        yield _reasons(found)
    if found.invalid:
        yield _invalid(found)


def percent(share: float, *, sign: bool = False) -> str:
    """``12.3 %``."""
    return f"{100 * share:+.1f} %".replace("-", "−") if sign else f"{100 * share:.1f} %"


def spread_cells(one: Spread) -> tuple[str, ...]:
    """The cells under ``SPREAD_HEAD``."""
    return (
        str(one.n),
        percent(one.median),
        percent(one.signed, sign=True),
        percent(one.p90),
        percent(one.p95),
        percent(one.max),
    )


def _by_target(summary: dict[str, Spread]) -> Grid:
    rows = []
    for metric, said in SHORT.items():
        if metric in summary:
            rows.append((said, "all", *spread_cells(summary[metric])))
        for name, one in summary.items():
            if name.startswith(f"{metric}/target="):
                rows.append((said, name.partition("=")[2], *spread_cells(one)))
    return Grid(
        title="error by figure; below it, rows of quality A and B by kind",
        heads=("figure", "rows", *SPREAD_HEAD),
        rows=tuple(rows),
        left=2,
    )


def _by_stratum(summary: dict[str, Spread], metric: str) -> Grid:
    rows = []
    for name, one in summary.items():
        found, _, stratum = name.partition("/")
        dimension, _, word = stratum.partition("=")
        if found == metric and dimension not in {"", "target"}:
            rows.append((dimension, word, *spread_cells(one)))
    return Grid(
        title=f"{SHORT[metric]}, by stratum",
        heads=("stratum", "is", *SPREAD_HEAD),
        rows=tuple(rows),
        left=2,
    )


def _worst(found: Validation, count: int) -> Grid:
    counters = [one for one in found.comparisons if one.said is None]
    rows = tuple((*_facing(one), largest(one)) for one in worst(counters, count))
    return Grid(
        title="worst rows (GiB), and the largest component in the plan's ledger",
        heads=(*_FACING, "ledger"),
        rows=rows,
        left=2,
    )


def _worst_speeds(found: Validation, count: int) -> Grid:
    speeds = [one for one in found.comparisons if one.said is not None]
    rows = tuple((*_facing(one), one.quality) for one in worst(speeds, count))
    return Grid(
        title="worst speeds (seconds, tokens or samples a second), and their quality",
        heads=(*_FACING, "quality"),
        rows=rows,
        left=2,
    )


_FACING = ("row", "figure", "measured", "predicted", "error")


def _facing(one: Comparison) -> tuple[str, ...]:
    return (
        one.row.id,
        SHORT[one.metric],
        figure(one, one.measured),
        figure(one, one.predicted),
        percent(one.error, sign=True),
    )


def figure(one: Comparison, value: float) -> str:
    """A counter in GiB, a speed as it is."""
    return f"{value / GIB if one.said is None else value:,.2f}"


def largest(one: Comparison) -> str:
    """The instant of the peak and the component that takes most of it."""
    memory = one.plan.memory
    name, nbytes = max(memory.components.items(), key=lambda item: item[1])
    share = nbytes / (memory.allocated_bytes or 1)
    return f"{memory.peak_instant}: {name} {share:.0%}".replace("_", " ")


def _outcomes(found: Validation) -> Grid:
    rows = tuple(
        (measured, *(str(counts[verdict]) for verdict in VERDICTS))
        for measured, counts in confusion(found.outcomes).items()
    )
    return Grid(
        title="how runs ended (failed: cause unrecorded) against the plan's verdict",
        heads=("measured", *VERDICTS),
        rows=rows,
    )


def _reasons(found: Validation) -> Grid:
    counts = Counter(one.reason for one in found.skipped)
    rows = tuple((str(number), reason) for reason, number in counts.most_common())
    return Grid(title="rows the plan cannot express", heads=("n", "reason"), rows=rows, left=2)


def _invalid(found: Validation) -> Grid:
    rows = tuple((str(one.line), one.column, one.reason) for one in found.invalid)
    return Grid(title="malformed rows", heads=("line", "column", "reason"), rows=rows, left=3)
