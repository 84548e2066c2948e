"""``vram-plan validate --peers``: published estimators on the same measured rows."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING

import click

from vram_plan.reports.scoreboard_text import HEADERS, Board, as_grid, as_json, boards

if TYPE_CHECKING:
    from vram_plan.reports.validate.run import Validation

_NOTE = (
    "Each estimator's own formula with the settings nearest to the run; the last column is the "
    "plan on the figures that the estimator can express."
)


def show_peers(found: Validation, format_: str) -> None:
    """Print a scoreboard for each counter."""
    made = boards(found.comparisons)
    if format_ == "json":
        document = {"schema": "vram-plan/scoreboard/1", "counters": as_json(made)}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif format_ == "csv":
        _csv(made)
    elif format_ == "markdown":
        _markdown(made)
    else:
        _table(made)


def _csv(made: list[Board]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("counter", *HEADERS))
    for board in made:
        for row in as_grid(board).rows:
            writer.writerow((board.counter, *row))


def _markdown(made: list[Board]) -> None:
    from vram_plan.app.validate_markdown import grid_lines

    lines = [_NOTE]
    for board in made:
        lines += ["", *grid_lines(as_grid(board))]
    click.echo("\n".join(lines))


def _table(made: list[Board]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for board in made:
        console.print(Text(board.title, style="bold"))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        for index, head in enumerate(HEADERS):
            table.add_column(head, justify="right" if index else "left")
        for row in as_grid(board).rows:
            table.add_row(*row)
        console.print(table)
        _reasons(console, board)
        console.print()
    console.print(_NOTE)


def _reasons(console: object, board: Board) -> None:
    """Why the estimators have no answer, the three most frequent reasons of each."""
    from rich.console import Console
    from rich.text import Text

    assert isinstance(console, Console)
    for one in board.standings:
        if one.reasons:
            said = "; ".join(f"{reason} ({number})" for reason, number in one.reasons[:3])
            console.print(Text(f"  {one.name} cannot: {said}", style="dim"))
