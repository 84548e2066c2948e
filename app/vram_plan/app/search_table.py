"""A search at a terminal: the best plans, why, the front, what was ruled out."""

from __future__ import annotations

import os
import sys
from textwrap import wrap

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

_WIDE = 100
"""Columns from which a plan's options stand beside its figures, not below them."""


def show(space: Space, wish: Wish, found: Found) -> None:
    """Print the tables."""
    said = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, soft_wrap=False, width=None if said else 100)
    console.print(Text(headline(space, wish, found), style="bold"))
    for line in space_lines(space, wish):
        console.print(Text(line, style="dim"))
    _print(console, plans_grid(space, wish, found))
    if found.plans:
        console.print(Text("why", style="bold"))
        for line in reasons(space, wish, found):
            _wrapped(console, line, " " * 5)
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
    if "plan" in grid.heads and console.width < _WIDE:
        _print_narrow(console, grid)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for head in grid.heads:
        words = head in grid.words
        table.add_column(head, justify="left" if words else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*row)
    console.print(table)


def _print_narrow(console: Console, grid: Grid) -> None:
    """The options of every plan, and its bytes, on a line below its figures."""
    below = [at for at, head in enumerate(grid.heads) if head in {"plan", "required", "free"}]
    beside = [at for at in range(len(grid.heads)) if at not in below]
    table = [[row[at] for at in beside] for row in (grid.heads, *grid.rows)]
    left = [head in grid.words for head in table[0]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    margin = " " * (widths[0] + 2)
    for number, row in enumerate(table):
        cells = [
            cell.ljust(width) if is_word else cell.rjust(width)
            for cell, width, is_word in zip(row, widths, left, strict=True)
        ]
        console.print(Text("  ".join(cells).rstrip(), style="" if number else "dim"))
        if number:
            full = grid.rows[number - 1]
            words = (
                full[at] if grid.heads[at] == "plan" else f"{full[at]} {grid.heads[at]}"
                for at in below
                if full[at]
            )
            _wrapped(console, margin + "; ".join(words), margin)


def _wrapped(console: Console, line: str, margin: str) -> None:
    lines = wrap(line, console.width, subsequent_indent=margin, break_on_hyphens=False)
    console.print(Text("\n".join(lines)))
