"""Reading measured rows: the project's own, and everything that can be wrong with a file."""

import csv
import io
import math
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vram_plan.profiles.measured import ROWS_FILE, Invalid, Row, read_rows
from vram_plan.profiles.measured_row import COLUMNS, INTEGERS, NUMBERS, SWITCHES, WORDS

GOOD = {
    "id": "run-1",
    "group": "mine/Llama-2-7b-hf",
    "model": "meta-llama/Llama-2-7b-hf",
    "method": "lora",
    "outcome": "ok",
    "quality": "A",
    "allocated_peak_bytes": "123",
    "zero_stage": "2",
    "double_quant": "yes",
    "step_seconds": "1.5e1",
    "notes": "quoted, with a comma\nand a line",
}


def write(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return str(path)


def read(path: str) -> tuple[list[Row], list[Invalid]]:
    found = list(read_rows(path))
    return (
        [one for one in found if isinstance(one, Row)],
        [one for one in found if isinstance(one, Invalid)],
    )


def test_own_rows_are_all_valid_and_read_in_a_moment() -> None:
    begun = time.process_time()
    rows, invalid = read(ROWS_FILE)
    seconds = time.process_time() - begun
    assert not invalid
    assert len(rows) == 1531
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.source for row in rows), "every row says where it was published"
    assert seconds < 2, "thousands of rows a second"


def test_attribution_is_carried() -> None:
    folder = Path(ROWS_FILE).parent
    schema, sources = ((folder / name).read_text() for name in ("SCHEMA.md", "SOURCES.md"))
    for column in COLUMNS:
        assert f"`{column}`" in schema
    assert "fms-acceleration" in sources
    with open(ROWS_FILE, encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_kinds_of_columns_are_apart() -> None:
    assert not INTEGERS & NUMBERS
    assert not (INTEGERS | NUMBERS) & SWITCHES
    assert set(WORDS) <= set(COLUMNS)


def test_cells_are_typed(tmp_path: Path) -> None:
    rows, invalid = read(write(tmp_path / "rows.csv", GOOD))
    assert not invalid
    (row,) = rows
    assert row.allocated_peak_bytes == 123
    assert row.zero_stage == 2
    assert row.double_quant is True
    assert row.step_seconds == 15.0
    assert row.notes == "quoted, with a comma\nand a line"
    assert row.engine is None
    assert row.lora_rank is None
    assert row.family == "mine"
    assert row.has_memory


BAD = [
    ("allocated_peak_bytes", "-5", "negative"),
    ("allocated_peak_bytes", "12.5", "not a whole number"),
    ("allocated_peak_bytes", "1e9", "not a whole number"),
    ("allocated_peak_bytes", "0", "is 0"),
    ("allocated_peak_bytes", "9" * 30, "larger than any figure"),
    ("allocated_peak_bytes", "9" * 5000, "larger than any figure"),
    ("allocated_peak_bytes", "１２", "not a whole number"),
    ("allocated_peak_bytes", " 12", "not a whole number"),
    ("allocated_peak_bytes", "1_000", "not a whole number"),
    ("gpus", "eight", "not a whole number"),
    ("step_seconds", "-0.5", "negative"),
    ("step_seconds", "nan", "not a number"),
    ("step_seconds", "inf", "not a number"),
    ("step_seconds", "1e999", "out of range"),
    ("step_seconds", "0", "out of range"),
    ("tokens_per_second_per_gpu", "3,000", "not a number"),
    ("tied_embeddings", "true", "neither yes nor no"),
    ("zero_stage", "4", "none of 0, 1, 2, 3"),
    ("zero_stage", "-1", "none of"),
    ("outcome", "crash", "none of ok, oom, failed"),
    ("outcome", "", "is empty"),
    ("id", "", "is empty"),
    ("quality", "D", "none of A, B, C"),
    ("precision", "float16", "none of"),
    ("memory_rank", "first", "none of"),
    ("notes", "x" * 20_000, "characters"),
]


@pytest.mark.parametrize(("column", "cell", "reason"), BAD)
def test_a_bad_cell_is_reported_and_the_rest_is_read(
    tmp_path: Path, column: str, cell: str, reason: str
) -> None:
    path = write(tmp_path / "rows.csv", GOOD, GOOD | {column: cell}, GOOD | {"id": "run-3"})
    rows, invalid = read(path)
    assert [row.id for row in rows] == ["run-1", "run-3"]
    (fault,) = invalid
    assert fault.line == 4, "of a quoted cell over two lines the next row begins in the fourth"
    assert fault.column == column
    assert reason in fault.reason
    assert "\n" not in fault.reason
    assert len(fault.reason) < 200


def test_a_second_row_of_the_same_id_is_invalid(tmp_path: Path) -> None:
    rows, invalid = read(write(tmp_path / "rows.csv", GOOD, GOOD))
    assert len(rows) == 1
    assert (invalid[0].column, invalid[0].line) == ("id", 4)
    assert "line 2" in invalid[0].reason


def test_unknown_columns_are_named_and_left_out(tmp_path: Path) -> None:
    columns = (*COLUMNS, "vram", "")
    rows, invalid = read(write(tmp_path / "rows.csv", GOOD | {"vram": "12"}, columns=columns))
    assert [row.id for row in rows] == ["run-1"]
    assert [(one.line, one.column) for one in invalid] == [(1, "vram"), (1, "")]
    assert "unknown column" in invalid[0].reason


def test_missing_columns_are_named_and_read_as_unknown(tmp_path: Path) -> None:
    columns = tuple(name for name in COLUMNS if name != "engine")
    rows, invalid = read(write(tmp_path / "rows.csv", GOOD, columns=columns))
    assert rows[0].engine is None
    assert [(one.line, one.column) for one in invalid] == [(1, "engine")]
    assert "missing" in invalid[0].reason


def test_a_column_twice_is_named_and_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    text = Path(write(path, GOOD)).read_text().replace("group,source", "group,id", 1)
    path.write_text(text)
    rows, invalid = read(str(path))
    assert rows[0].id == "run-1"
    assert next((one.column, "twice" in one.reason) for one in invalid) == ("id", True)


@pytest.mark.parametrize("cells", ["run-2,mine/x", "run-2" + "," * 200])
def test_rows_of_another_length_are_invalid(tmp_path: Path, cells: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(Path(write(path, GOOD)).read_text() + cells + "\n\n" + "\n")
    rows, invalid = read(str(path))
    assert len(rows) == 1
    assert len(invalid) == 1
    assert "cells, the header" in invalid[0].reason


def test_a_row_that_is_not_utf8_is_invalid_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    raw = Path(write(path, GOOD, GOOD | {"id": "run-2", "model": "caf@"}, GOOD | {"id": "run-3"}))
    path.write_bytes(raw.read_bytes().replace(b"caf@", b"caf\xe9"))
    rows, invalid = read(str(path))
    assert [row.id for row in rows] == ["run-1", "run-3"]
    assert (invalid[0].column, invalid[0].reason) == ("model", "is not UTF-8")


def test_an_open_quote_is_invalid_not_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(Path(write(path, GOOD)).read_text() + '"run-2,no end\n')
    rows, invalid = read(str(path))
    assert len(rows) == 1
    assert "not CSV" in invalid[0].reason


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    text = Path(write(path, GOOD | {"notes": "one line"})).read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    rows, invalid = read(str(path))
    assert len(rows) == 1
    assert not invalid


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has no column 'id'"),
        (b"\n\n", "has no column 'id'"),
        (b"name,value\na,1\n", "has no column 'id'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not text"),
        (b'"open', "is not CSV"),
        (b"{}", "has no column 'id'"),
    ],
)
def test_what_is_no_table_of_rows_cannot_be_read(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        list(read_rows(str(path)))


def test_missing_files_and_folders_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            list(read_rows(str(path)))


def test_rows_come_as_they_are_read(tmp_path: Path) -> None:
    """Streaming: the first row is there before a fault at the end of the file."""
    path = tmp_path / "rows.csv"
    path.write_text(Path(write(path, GOOD)).read_text() + '"open')
    first = next(read_rows(str(path)))
    assert isinstance(first, Row)


@given(cells=st.lists(st.text(max_size=12), min_size=len(COLUMNS), max_size=len(COLUMNS)))
def test_no_text_makes_a_traceback(
    cells: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerow(cells)
    try:
        found = list(read_rows(str(path)))
    except ValueError:
        return  # a zero byte among the first: no text at all
    for one in found:
        if isinstance(one, Row):
            for name in INTEGERS | NUMBERS:
                value = getattr(one, name)
                assert value is None or (value >= 0 and math.isfinite(value))


def test_a_damaged_copy_of_the_own_rows_never_makes_a_traceback(tmp_path: Path) -> None:
    lines = Path(ROWS_FILE).read_bytes().splitlines(keepends=True)[:40]
    chance = random.Random(7)
    for number in range(40):
        raw = bytearray(b"".join(lines))
        for _ in range(20):
            raw[chance.randrange(len(lines[0]), len(raw))] = chance.randrange(1, 256)
        path = tmp_path / f"{number}.csv"
        path.write_bytes(bytes(raw))
        rows, invalid = read(str(path))
        assert rows or invalid
