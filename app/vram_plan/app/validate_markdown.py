"""A validation as Markdown, for a README, an issue or a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vram_plan.app.markdown import ledger_lines
from vram_plan.reports.markup import plain
from vram_plan.reports.validate.view import Grid, coverage, grids, headline

if TYPE_CHECKING:
    from vram_plan.reports.validate.run import Validation


def show(found: Validation, *, worst: int, explain: bool) -> None:
    """Print the document."""
    lines = [f"{headline(found)}; {coverage(found)}."]
    for grid in grids(found, count=worst):
        lines += ["", *grid_lines(grid)]
    if explain and found.comparisons:
        lines += ledger_lines(found.comparisons[0].plan)
    click.echo("\n".join(lines))


def grid_lines(grid: Grid) -> list[str]:
    """A title and a table."""
    rule = "|".join("---" if i < grid.left else "---:" for i in range(len(grid.heads)))
    rows = ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in grid.rows]
    return [f"**{grid.title}**", "", "| " + " | ".join(grid.heads) + " |", f"|{rule}|", *rows]
