"""A search at a terminal: the best plans, why, the front, what was ruled out."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vram_plan.app.search_options import command_line
from vram_plan.app.search_view import (
    Grid,
    front_grid,
    headline,
    plans_grid,
    reasons,
    ruled_out_grid,
    space_lines,
)
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.wish import Found, Wish


def show(space: Space, wish: Wish, found: Found) -> None:
    """Print the tables."""
    console = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 100)
    console.print(Text(headline(space, wish, found), style="bold"))
    for line in space_lines(space, wish):
        console.print(Text(line, style="dim"))
    _print(console, plans_grid(space, wish, found))
    if found.plans:
        console.print(Text("why", style="bold"))
        for line in reasons(space, wish, found):
            console.print(Text(line))
        console.print(Text("\nthe first of them in full:", style="dim"))
        console.print(Text(f"  {command_line(space, found.plans[0])}"), soft_wrap=True)
    if found.front:
        _print(console, front_grid(space, wish, found))
    _print(console, ruled_out_grid(found))


def _print(console: Console, grid: Grid) -> None:
    console.print()
    console.print(Text(grid.title, style="bold"))
    if not grid.rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in grid.heads:
        words = head in grid.words
        table.add_column(head, justify="left" if words else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*row)
    console.print(table)
