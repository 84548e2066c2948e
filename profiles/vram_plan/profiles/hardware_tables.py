"""The hardware catalogue's data files: comma-separated tables whose sources are named once.

CSV rather than TOML because the table of GPUs is on the plan's main path: a hundred rows parse in
about a millisecond.
"""

from __future__ import annotations

import csv
import os
from functools import cache

__all__ = ["number", "read_table", "sources"]

_DATA = os.path.join(os.path.dirname(__file__), "data")  # pathlib costs milliseconds at start-up


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of ``data/<name>.csv``, by column; lines that start with ``#`` are comments."""
    with open(os.path.join(_DATA, f"{name}.csv"), encoding="utf-8", newline="") as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        header = next(rows)
        return [dict(zip(header, row, strict=True)) for row in rows]


def number(text: str) -> float | None:
    """The number in a cell, or None where the cell is empty: not known."""
    return float(text) if text else None


def sources(names: str) -> str:
    """The addresses behind the names in a source column (``"a100-sheet ml-engineering"``)."""
    known = _known_sources()
    return "; ".join(one if one.startswith("http") else known[one] for one in names.split())


@cache
def _known_sources() -> dict[str, str]:
    return {row["key"]: row["text"] for row in read_table("hardware_sources")}
