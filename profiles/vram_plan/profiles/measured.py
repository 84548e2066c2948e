"""Measured rows: published runs of other people, read one by one from a CSV file.

The project carries its own in ``data/measured/rows.csv``; any file with the columns that
``SCHEMA.md`` explains reads the same way. What is malformed comes out as ``Invalid``, by line and
column, and the rest is read on.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from vram_plan.profiles.measured_row import COLUMNS, INTEGERS, NUMBERS, SWITCHES, WORDS, Row

__all__ = ["ROWS_FILE", "Invalid", "Row", "read_rows"]

ROWS_FILE = os.path.join(os.path.dirname(__file__), "data", "measured", "rows.csv")
"""The project's own rows."""
_REQUIRED = ("id", "group", "outcome", "quality")
_MAY_BE_ZERO = frozenset({"zero_stage", "trainable_params"})
_LONGEST_CELL = 16_384  # characters; notes have some hundred
_LARGEST = 10**18  # an exabyte: no figure of a run is larger
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")
_Parser = Callable[[str, str], Any]
_HEAD = 4096  # bytes looked at before reading: a binary file has a zero byte among them


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """Something in a file that cannot be a measured row.

    Attributes:
        line: line of the file, counted from 1; of a row over several lines the first.
        column: column's name, empty where the whole row is meant.
        reason: what is wrong, in a person's words.
    """

    line: int
    column: str
    reason: str


class _MalformedError(ValueError):
    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column, self.reason = column, reason


def read_rows(path: str = ROWS_FILE) -> Iterator[Row | Invalid]:
    """Every row of a file, and what is malformed in it, as they come.

    Raises:
        ValueError: when nothing can be read: no file, no text, no header of measured rows.
    """
    try:
        with open(path, "rb") as binary:
            if b"\0" in binary.peek(_HEAD)[:_HEAD]:
                raise ValueError(f"{path}: is not text; give a CSV file of measured rows")
            text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
            yield from _rows(text, path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _rows(file: TextIO, path: str) -> Iterator[Row | Invalid]:
    reader = csv.reader(file, strict=True)
    names = _header(reader, path)
    yield from _header_faults(names)
    if not set(_REQUIRED) <= set(names):
        lacking = next(name for name in _REQUIRED if name not in names)
        raise ValueError(
            f"{path}: has no column {lacking!r}; its first line must name the columns of SCHEMA.md"
        )
    seen: dict[str, int] = {}
    columns = _readers(names)
    for line, cells in _records(reader):
        if isinstance(cells, Invalid):
            yield cells
            continue
        try:
            row = _row(columns, cells)
            if row.id in seen:
                raise _MalformedError("id", f"{row.id!r} is the id of line {seen[row.id]} too")
        except _MalformedError as fault:
            yield Invalid(line=line, column=fault.column, reason=fault.reason)
            continue
        seen[row.id] = line
        yield row


def _header(reader: Any, path: str) -> list[str]:
    try:
        return [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"{path}: its first line is not CSV ({error})") from None


def _header_faults(names: list[str]) -> Iterator[Invalid]:
    known = frozenset(COLUMNS)
    for index, name in enumerate(names):
        if name not in known:
            said = _shown(name) if name else "an empty name"
            yield Invalid(line=1, column=name, reason=f"unknown column {said}; it is left out")
        elif name in names[:index]:
            yield Invalid(line=1, column=name, reason="column is there twice; the first counts")
    for name in COLUMNS:
        if name not in names and name not in _REQUIRED:
            yield Invalid(line=1, column=name, reason="column is missing; read as unknown")


def _records(reader: Any) -> Iterator[tuple[int, list[str] | Invalid]]:
    """Rows with the line they begin in; blank lines are none."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, Invalid(line=line, column="", reason=f"is not CSV: {error}")
            continue
        if cells is None:
            return
        if cells:
            yield line, cells


def _readers(names: list[str]) -> list[tuple[str, _Parser | None]]:
    """What reads each column of a file: None for the second of its name, and unknown ones."""
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    return [
        (name, _PARSERS.get(name) if first[name] == index else None)
        for index, name in enumerate(names)
    ]


def _row(columns: list[tuple[str, _Parser | None]], cells: list[str]) -> Row:
    if len(cells) != len(columns):
        short = len(cells) < len(columns)
        raise _MalformedError(
            columns[len(cells)][0] if short else "",
            f"has {len(cells)} cells, the header {len(columns)} columns",
        )
    values: dict[str, Any] = {}
    for (name, parser), cell in zip(columns, cells, strict=True):
        if cell and parser is not None:
            values[name] = parser(name, cell)
    for name in _REQUIRED:
        if name not in values:
            raise _MalformedError(name, "is empty; every row needs it")
    return Row(**values)


def _integer(name: str, cell: str) -> int:
    if name in WORDS:
        _word(name, cell)
    if not (cell.isascii() and cell.isdigit()):
        negative = cell.startswith("-") and cell[1:].isdigit()
        said = "negative" if negative else "not a whole number"
        raise _MalformedError(name, f"{_shown(cell)} is {said}")
    value = int(cell) if len(cell) < 20 else _LARGEST + 1
    if value > _LARGEST:
        raise _MalformedError(name, f"{_shown(cell)} is larger than any figure of a run")
    if value == 0 and name not in _MAY_BE_ZERO:
        raise _MalformedError(name, "is 0; leave it empty where it is unknown")
    return value


def _number(name: str, cell: str) -> float:
    if cell.startswith("-") and _DECIMAL.fullmatch(cell[1:]):
        raise _MalformedError(name, f"{_shown(cell)} is negative")
    if not _DECIMAL.fullmatch(cell):
        raise _MalformedError(name, f"{_shown(cell)} is not a number")
    value = float(cell)
    if not 0 < value <= _LARGEST:
        raise _MalformedError(name, f"{_shown(cell)} is out of range; leave it empty where unknown")
    return value


def _switch(name: str, cell: str) -> bool:
    if cell not in {"yes", "no"}:
        raise _MalformedError(name, f"{_shown(cell)} is neither yes nor no")
    return cell == "yes"


def _word(name: str, cell: str) -> str:
    words = WORDS[name]
    if cell not in words:
        raise _MalformedError(name, f"{_shown(cell)} is none of {', '.join(words)}")
    return cell


def _text(name: str, cell: str) -> str:
    if len(cell) > _LONGEST_CELL:
        raise _MalformedError(name, f"has {len(cell):,} characters, at most {_LONGEST_CELL:,}")
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise _MalformedError(name, "is not UTF-8") from None
    return cell


def _shown(cell: str) -> str:
    """A cell for a message: short, on one line, printable."""
    return ascii(cell if len(cell) <= 40 else cell[:37] + "...")


def _parser(name: str) -> _Parser:
    if name in INTEGERS:
        return _integer
    if name in NUMBERS:
        return _number
    if name in SWITCHES:
        return _switch
    return _word if name in WORDS else _text


_PARSERS = {name: _parser(name) for name in COLUMNS}
