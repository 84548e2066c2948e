"""The scoreboard: the plan and the peers on the same rows, in every form."""

import csv
import io
import json
from itertools import islice
from pathlib import Path

import pytest

from vram_plan.app.main import main
from vram_plan.profiles.measured import ROWS_FILE, read_rows
from vram_plan.reports.peers import PEERS
from vram_plan.reports.scoreboard import OURS, scoreboard
from vram_plan.reports.scoreboard_text import HEADERS, as_grid, as_json, boards, percent
from vram_plan.reports.validate.run import Validation, validate

A100_RUNS = 60
"""The first rows of the file: fine-tunes on A100, one GPU and FSDP, full and LoRA."""


@pytest.fixture(scope="module")
def found() -> Validation:
    return validate(islice(read_rows(), A100_RUNS))


@pytest.fixture(scope="module")
def first_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with open(ROWS_FILE, encoding="utf-8", newline="") as file:
        records = list(islice(csv.reader(file), A100_RUNS + 1))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(records)
    return path


def test_every_estimator_is_asked_the_same(found: Validation) -> None:
    ours, *others = scoreboard(found.comparisons, counters=("allocated_peak_bytes",))
    assert ours.name == OURS
    assert ours.expressed == ours.asked > 20
    assert [one.name for one in others] == [peer.name for peer in PEERS]
    for one in others:
        assert one.asked == ours.asked
        assert one.expressed + sum(number for _, number in one.reasons) == one.asked
        assert 0 <= one.within_5 <= one.within_10 <= 1
        if one.errors and one.ours:
            assert one.ours.n == one.errors.n
            assert one.errors.median <= one.errors.p90 <= one.errors.max


def test_the_plan_is_nearer_than_every_peer(found: Validation) -> None:
    ours, *others = scoreboard(found.comparisons, counters=("allocated_peak_bytes",))
    assert ours.errors is not None
    for one in others:
        assert one.errors is None or (one.ours and one.ours.median < one.errors.median)


def test_tables_and_figures_say_the_same(found: Validation) -> None:
    made = boards(found.comparisons)
    assert next(board.counter for board in made) == "allocated_peak_bytes"
    plain = as_json(made)
    for board in made:
        grid = as_grid(board)
        assert grid.heads == HEADERS
        for row, figures in zip(grid.rows, plain[board.counter], strict=True):
            assert row[0].startswith(figures["name"])
            assert row[1] == f"{figures['expressed']} of {figures['asked']}"
            if figures["median"] is not None:
                assert row[2] == percent(figures["median"])


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0034, "0.34 %"), (0.0729, "7.3 %"), (0.456, "46 %"), (11.234, "1,123 %"), (0.0, "0.00 %")],
)
def test_percent(share: float, said: str) -> None:
    assert percent(share) == said


@pytest.mark.parametrize("format_", ["table", "json", "markdown", "csv"])
def test_command(format_: str, first_rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["validate", "--peers", "--data", str(first_rows), "--format", format_])
    printed = capsys.readouterr()
    assert stop.value.code == 0
    assert not printed.err
    assert all(peer.name in printed.out for peer in PEERS)
    if format_ == "json":
        document = json.loads(printed.out)
        assert document["schema"] == "vram-plan/scoreboard/1"
        assert set(document["counters"]) <= {
            "allocated_peak_bytes",
            "reserved_peak_bytes",
            "device_used_bytes",
        }
    if format_ == "csv":
        assert next(csv.reader(io.StringIO(printed.out)))[1:] == list(HEADERS)
