"""The same content as Markdown, for a pull request or a README."""

from __future__ import annotations

from collections.abc import Sequence

from vram_plan.reports.page.sections import Section, Table

__all__ = ["markdown"]

_LONG = 20


def markdown(title: str, answer: str, sections: Sequence[Section]) -> str:
    """Headings, sentences and tables; figures are their tables."""
    lines = [f"# {_plain(title)}", "", _plain(answer)]
    for section in sections:
        lines += ["", f"## {_plain(section.title)}"]
        lines += ["", _plain(section.text)] if section.text else []
        if section.table is not None:
            lines += ["", *_table(section.table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = [_row(table.head), _row(["---"] * len(table.head))]
    lines += [_row(tuple(map(_plain, row))) for row in table.rows]
    if len(table.rows) <= _LONG:
        return lines
    summary = f"<details><summary>{len(table.rows)} rows</summary>"
    return [summary, "", *lines, "", "</details>"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Names come from outside: nothing in them is markup."""
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        text = text.replace(sign, name)
    return " ".join(text.split())
