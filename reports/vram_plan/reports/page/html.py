"""One self-contained page: plotly once, nothing fetched, everything from outside escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vram_plan.reports.page.sections import Section, Table

__all__ = ["page"]

_STYLE = Path(__file__).with_name("page.css")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
"""The browser itself then refuses to fetch anything."""
_CONFIG = {"displaylogo": False, "responsive": True}


def page(title: str, answer: str, sections: Sequence[Section]) -> str:
    """The whole document.

    Args:
        title: of the page.
        answer: its first sentence.
        sections: in the order of reading.
    """
    drawn = any(section.figure is not None for section in sections)
    body = "\n".join(_section(number, section) for number, section in enumerate(sections))
    contents = "".join(
        f'<li><a href="#s{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{_STYLE.read_text(encoding="utf-8")}
</style>
{_script() if drawn else ""}
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="answer">{escape(answer)}</p>
<nav aria-label="Sections"><ul>{contents}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _script() -> str:
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script>"


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="s{number}"><h2>{escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.figure is not None:
        div = section.figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=f"figure-{number}", config=_CONFIG
        )
        label = escape(section.title, quote=True)
        parts.append(f'<figure role="img" aria-label="{label}">{div}</figure>')
    if section.table is not None:
        table = _table(section.table)
        closed = section.folded and section.figure is not None
        parts.append(
            f"<details><summary>The figures as a table</summary>{table}</details>"
            if closed
            else table
        )
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
