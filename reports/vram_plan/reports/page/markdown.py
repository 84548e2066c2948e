"""The same content as Markdown, for a pull request or a README."""

from __future__ import annotations

from collections.abc import Sequence

from vram_plan.reports.markup import plain
from vram_plan.reports.page.sections import Section, Table

__all__ = ["markdown"]

_LONG = 20


def markdown(title: str, answer: str, sections: Sequence[Section]) -> str:
    """Headings, sentences and tables; figures are their tables."""
    lines = [f"# {plain(title)}", "", plain(answer)]
    for section in sections:
        lines += ["", f"## {plain(section.title)}"]
        lines += ["", plain(section.text)] if section.text else []
        if section.table is not None:
            lines += ["", *_table(section.table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = [_row(table.head), _row(["---"] * len(table.head))]
    lines += [_row(tuple(map(plain, row))) for row in table.rows]
    if len(table.rows) <= _LONG:
        return lines
    summary = f"<details><summary>{len(table.rows)} rows</summary>"
    return [summary, "", *lines, "", "</details>"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
