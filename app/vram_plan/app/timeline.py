"""Live memory over a step, drawn with blocks; the peak is marked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from vram_plan.app.units import gib

__all__ = ["picture"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 10
_MARGIN = 12
_COLOURS = ("blue", "yellow", "magenta", "red", "cyan", "green")


def picture(points: Sequence[tuple[str, int]], *, width: int) -> Text:
    """Columns of equal numbers of events; each as high as the largest of its events.

    Args:
        points: instant and live bytes, in the order of the step.
        width: characters to a line.
    """
    columns = _columns(points, max(20, width - _MARGIN))
    if not columns:
        return Text("no events\n")
    top = max(size for _, size in columns)
    names = list(dict.fromkeys(name for name, _ in columns))
    text = Text("live memory over the step's events\n", style="bold")
    for row in range(_HEIGHT, 0, -1):
        edge = gib(top * row / _HEIGHT, 1) if row in (_HEIGHT, _HEIGHT // 2) else ""
        text.append(f"{edge:>{_MARGIN - 2}} ", style="not bold dim")
        for name, size in columns:
            text.append(_cell(size, top, row), style=f"not bold {_colour(names, name)}")
        text.append("\n")
    peak = max(range(len(columns)), key=lambda index: columns[index][1])
    text.append(" " * (_MARGIN - 1 + peak) + "▲ peak\n")
    _legend(text, names, width)
    return text


def _legend(text: Text, names: list[str], width: int) -> None:
    """The colours' names, as many to a line as there is room for."""
    room = 0
    for name in names:
        words = name.replace("_", " ")
        if len(words) + 4 > room:
            text.append("\n" * (name != names[0]) + " " * (_MARGIN - 1))
            room = width - _MARGIN
        text.append("█ ", style=f"not bold {_colour(names, name)}")
        text.append(f"{words}  ", style="not bold")
        room -= len(words) + 4
    text.append("\n")


def _columns(points: Sequence[tuple[str, int]], width: int) -> list[tuple[str, int]]:
    count = min(width, len(points))
    found = []
    for column in range(count):
        chunk = points[column * len(points) // count : (column + 1) * len(points) // count]
        found.append(max(chunk, key=lambda point: point[1]))
    return found


def _cell(size: int, top: int, row: int) -> str:
    eighths = round(8 * _HEIGHT * size / top) - 8 * (row - 1)
    return _EIGHTHS[max(0, min(8, eighths))]


def _colour(names: list[str], name: str) -> str:
    return _COLOURS[names.index(name) % len(_COLOURS)]
