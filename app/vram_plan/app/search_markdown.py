"""A search as Markdown, for an issue, a pull request or a purchase request."""

from __future__ import annotations

import click

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
from vram_plan.reports.markup import plain


def show(space: Space, wish: Wish, found: Found) -> None:
    """Print the document."""
    lines = [f"**{plain(headline(space, wish, found))}**", ""]
    lines += [f"- {plain(line)}" for line in space_lines(space, wish)]
    lines += _table(plans_grid(space, wish, found))
    if found.plans:
        lines += ["", "Why:", ""]
        lines += [f"- {plain(line.strip())}" for line in reasons(space, wish, found)]
        lines += ["", f"```\n{command_line(space, found.plans[0])}\n```"]
    if found.front:
        lines += _table(front_grid(space, wish, found))
    lines += _table(ruled_out_grid(found))
    click.echo("\n".join(lines))


def _table(grid: Grid) -> list[str]:
    if not grid.rows:
        return ["", f"{grid.title[0].upper()}{grid.title[1:]}."]
    rule = "|".join("---" if head in grid.words else "---:" for head in grid.heads)
    lines = ["", f"{grid.title[0].upper()}{grid.title[1:]}:", ""]
    lines += ["| " + " | ".join(grid.heads) + " |", f"|{rule}|"]
    return lines + ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in grid.rows]
