"""``vram-plan validate``: predict published runs, and print the error."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from vram_plan.profiles.measured import Invalid, Row
    from vram_plan.reports.validate.run import Validation

Thing = TypeVar("Thing")
_FORMATS = {
    "table": "validate_table",
    "json": "validate_json",
    "markdown": "validate_markdown",
    "csv": "validate_csv",
}
_METRICS = (
    "allocated_peak_bytes",
    "allocated_final_bytes",
    "reserved_peak_bytes",
    "device_used_bytes",
    "memory_bytes",
    "step_seconds",
    "tokens_per_second_per_gpu",
    "samples_per_second",
)
_QUIET_SECONDS, _BETWEEN_SECONDS = 1.0, 0.2


@click.command()
@click.option("--data", metavar="FILE.csv", help="Rows to predict.  [default: the project's own]")
@click.option(
    "--format",
    "format_",
    type=click.Choice(tuple(_FORMATS)),
    default="table",
    help="How to print.  [default: table]",
)
@click.option("--row", "row_id", metavar="ID", help="One row only.")
@click.option("--explain", is_flag=True, help="The ledger beside the measurement (needs --row).")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    type=click.Choice(_METRICS),
    metavar="COLUMN",
    help=f"Compare only this figure; may be repeated: {', '.join(_METRICS)}.",
)
@click.option(
    "--worst",
    type=click.IntRange(min=0),
    default=10,
    metavar="N",
    help="How many of the worst rows are shown.  [default: 10]",
)
@click.option("--peers", is_flag=True, help="Published estimators on the same rows instead.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes for a file of many rows.  [default: the cores it may use]",
)
@click.pass_context
def validate(
    context: click.Context,
    /,
    data: str | None,
    format_: str,
    row_id: str | None,
    explain: bool,
    **choice: tuple[str, ...] | int | None,
) -> None:
    """Predict the memory of published runs and print the error by stratum.

    Rows that the plan cannot express are skipped with the reason; malformed ones are reported by
    line and column, and the exit code is then 1.

    \b
    Examples:
      vram-plan validate
      vram-plan validate --data my-runs.csv --format json
      vram-plan validate --data my-runs.csv --jobs 4
      vram-plan validate --row fms-a100-main-001 --explain
      vram-plan validate --metric allocated_peak_bytes --worst 20
      vram-plan validate --peers
    """
    if explain and row_id is None:
        raise click.UsageError("--explain needs --row ID: the ledger is that of one row")
    metrics, worst, jobs = choice["metrics"], choice["worst"], choice["jobs"]
    assert isinstance(metrics, tuple)
    assert not isinstance(jobs, tuple)
    try:
        with _without_rounds():
            found = _validated(data, row_id, metrics, jobs)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if choice["peers"]:
        import_module("vram_plan.app.peers_show").show_peers(found, format_)
    else:
        renderer = import_module(f"vram_plan.app.{_FORMATS[format_]}")
        renderer.show(found, worst=worst, explain=explain)
    if found.invalid:
        context.exit(1)


@contextmanager
def _without_rounds() -> Iterator[None]:
    """Python's rounds for reference cycles are put off: predictions leave next to none."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _validated(
    data: str | None, row_id: str | None, metrics: tuple[str, ...], jobs: int | None
) -> Validation:
    from vram_plan.profiles.measured import ROWS_FILE, read_rows
    from vram_plan.reports.validate.processes import judge_rows, usable_cores
    from vram_plan.reports.validate.run import collect

    rows: Iterable[Row | Invalid] = read_rows(data or ROWS_FILE)
    if row_id is not None:
        rows = _only(rows, row_id)
    judged = judge_rows(rows, jobs=jobs or usable_cores(), metrics=metrics)
    with closing(judged):  # an interrupted run leaves no process behind
        return collect(_with_progress(judged, "rows"))


def _only(rows: Iterable[Row | Invalid], row_id: str) -> Iterator[Row | Invalid]:
    """The row with this id, and nothing of the others.

    Raises:
        ValueError: if no row has it; the message names near ones.
    """
    from vram_plan.profiles.measured import Row
    from vram_plan.profiles.names import suggest

    known = []
    for row in rows:
        if not isinstance(row, Row):
            continue
        if row.id == row_id:
            yield row
            return
        known.append(row.id)
    raise ValueError(f"--row {row_id}: no such row{suggest(row_id, known)}")


def _with_progress(things: Iterable[Thing], what: str) -> Iterator[Thing]:
    """Things as they come; at a terminal, how many after a second."""
    if not sys.stderr.isatty():
        yield from things
        return
    begun = shown = time.monotonic()
    for number, thing in enumerate(things):
        now = time.monotonic()
        if now - begun > _QUIET_SECONDS and now - shown > _BETWEEN_SECONDS:
            shown = now
            print(f"\r{number:,} {what} predicted", end="", file=sys.stderr, flush=True)
        yield thing
    if shown != begun:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
