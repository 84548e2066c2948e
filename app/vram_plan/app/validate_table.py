"""A validation at a terminal: the errors, the worst rows, what was left out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vram_plan.app.units import gib
from vram_plan.reports.validate.view import SHORT, Grid, coverage, grids, headline, percent

if TYPE_CHECKING:
    from vram_plan.reports.validate.judge import Comparison
    from vram_plan.reports.validate.run import Validation


def show(found: Validation, *, worst: int, explain: bool) -> None:
    """Print the tables, or one row with its ledger."""
    console = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 80)
    if explain:
        _explain(console, found)
        return
    console.print(Text(headline(found), style="bold"))
    if any(row.has_memory and row.quality != "C" for row in found.rows):
        console.print(Text(coverage(found)))
    for grid in grids(found, count=worst):
        console.print()
        console.print(Text(grid.title, style="bold"))
        console.print(_table(grid))


def _table(grid: Grid) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for index, head in enumerate(grid.heads):
        words = index < grid.left or head in {"reason", "ledger"}
        table.add_column(head, justify="left" if words else "right", overflow="fold")
    before = ""
    for row in grid.rows:
        first = row[0] if row[0] != before or grid.left < 2 else ""
        repeats = grid.heads[0] in {"figure", "stratum"}
        table.add_row(first if repeats else row[0], *row[1:])
        before = row[0]
    return table


def _explain(console: Console, found: Validation) -> None:
    from vram_plan.app.explain import show_ledger
    from vram_plan.app.summary import headline as plan_headline

    for skipped in found.skipped:
        console.print(f"{skipped.row.id}: {skipped.reason}")
    for outcome in found.outcomes:
        console.print(Text(f"{outcome.row.id} ended {outcome.row.outcome}", style="bold"), end="")
        console.print(
            f"; the plan requires {gib(outcome.required_bytes)} of {gib(outcome.usable_bytes)} "
            f"usable: {outcome.verdict}"
        )
    for one in found.comparisons:
        console.print(_facing(one))
    if found.comparisons:
        plan = found.comparisons[0].plan
        console.print(Text(plan_headline(plan), style="bold"))
        for text in (found.rows[0].notes, found.rows[0].source):
            if text:
                console.print(Text(text, style="dim"))
        show_ledger(console, plan)


def _facing(one: Comparison) -> Text:
    return Text.assemble(
        f"{one.row.id}  {SHORT[one.metric]}: measured ",
        (_said(one, one.measured), "bold"),
        ", predicted ",
        (_said(one, one.predicted), "bold"),
        f", {percent(one.error, sign=True)}",
    )


def _said(one: Comparison, value: float) -> str:
    return gib(round(value)) if one.said is None else f"{value:,.2f}"
