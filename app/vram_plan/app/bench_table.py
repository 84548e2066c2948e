"""Runs at a terminal: one line each as it ends, and the list of what is stored."""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vram_plan.app.units import gib

if TYPE_CHECKING:
    from vram_plan.bench.runs.sweep import Cell

_STYLES = {"ok": "green", "oom": "yellow"}


def cell_line(cell: Cell) -> str:
    """A run in one line: what it was, how it ended, memory beside the plan, seconds a step."""
    from vram_plan.bench.runs.sweep import title_of

    name = title_of(cell.job)
    if cell.refused is not None:
        return f"{name}: not run: {cell.refused}"
    if cell.measurement is None:
        where = "by the first machine" if cell.known == "elsewhere" else "stored"
        return f"{name}: {cell.known} ({where})"
    seen = cell.measurement
    if seen.outcome != "ok":
        return f"{name}: {seen.outcome}: {seen.error}"
    error = (seen.plan or {}).get("error")
    shown = f"plan {100 * error:+.2f} %" if error is not None else "no plan"
    line = f"{name}: {gib(seen.allocated_bytes or 0, 3)} ({shown})"
    if seen.step_seconds:
        line += f", {statistics.median(seen.step_seconds):.3g} s a step"
    fell = ((seen.run or {}).get("verdict") or {}).get("loss_fell")
    return line + (", the loss did not fall" if fell is False else "")


def show_runs(rows: list[dict[str, Any]]) -> None:
    """The stored runs as a table."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("run", "model", "method", "device", "outcome"):
        table.add_column(name, no_wrap=name != "model")
    for name in ("allocated", "plan", "s/step"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        outcome = row["outcome"] or "?"
        table.add_row(
            row["id"][-12:],
            row["model"] or "?",
            row["method"] or "?",
            row["device"] or "?",
            Text(outcome, style=_STYLES.get(outcome, "red")),
            gib(row["allocated"], 3) if row["allocated"] else "–",
            _off(row),
            f"{row['seconds']:.3g}" if row["seconds"] else "–",
        )
    console.print(table)


def _off(row: dict[str, Any]) -> str:
    if not row["allocated"] or not row["planned"]:
        return "–"
    return f"{100 * (row['planned'] / row['allocated'] - 1):+.2f} %"
