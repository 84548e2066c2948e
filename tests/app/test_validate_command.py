"""``vram-plan validate``: every format, exit codes, and how it says no."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vram_plan.app.main as command
from vram_plan.app.main import main
from vram_plan.profiles.measured import ROWS_FILE
from vram_plan.profiles.measured_row import COLUMNS

SCHEMA = json.loads((Path(command.__file__).parent / "schemas" / "validate.json").read_text())
RUN = "fms-a100-main-009"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["validate", *arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out, err


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    out, _ = run(capsys, *arguments, "--format", "json", code=code)
    found: dict[str, Any] = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    return found


ALLOCATED = ("fms-a100-main", "megatron-ci", "litgpt-resources", "torchtune", "colossalai", "liger")
OTHERS = ("fsdp-qlora", "ms-swift-examples", "llm-foundry", "minicpm-v", "libai", "bigscience")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A few of the own rows: of several families, of every outcome, some not to be expressed."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    seen: dict[str, int] = {}
    with open(ROWS_FILE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = []
    for row in rows:
        family = row["group"].partition("/")[0]
        key = family + row["outcome"]
        seen[key] = seen.get(key, 0) + 1
        most = 2 if family in ALLOCATED else int(family in OTHERS)
        if seen[key] <= most or row["id"] == RUN:
            kept.append(row)
    write(path, kept)
    return str(path)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def row_of(number: str) -> dict[str, str]:
    with open(ROWS_FILE, encoding="utf-8", newline="") as file:
        return next(row for row in csv.DictReader(file) if row["id"] == number)


def test_json_keeps_its_schema_and_every_row_is_somewhere(
    sample: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "--data", sample)
    assert list(found) == ["schema", "rows", "outcomes", "skipped", "invalid", "summary"]
    with open(sample, encoding="utf-8", newline="") as file:
        ids = {row["id"] for row in csv.DictReader(file)}
    compared = {one["id"] for one in found["rows"]}
    judged = {one["id"] for one in found["outcomes"]}
    skipped = {one["id"] for one in found["skipped"]}
    assert compared | judged | skipped == ids
    assert not skipped & (compared | judged)
    for one in found["rows"]:
        assert one["error"] == pytest.approx(one["predicted"] / one["measured"] - 1, abs=1e-5)


def test_summary_is_that_of_the_rows(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--data", sample)
    for metric in {one["metric"] for one in found["rows"]}:
        errors = sorted(abs(one["error"]) for one in found["rows"] if one["metric"] == metric)
        whole = found["summary"][metric]
        assert whole["n"] == len(errors)
        assert whole["max"] == pytest.approx(errors[-1], abs=1e-5)
        assert whole["median"] <= whole["p90"] <= whole["max"]
        for dimension in ("source", "method", "engine", "quantization", "gpus"):
            parts = [
                one["n"]
                for name, one in found["summary"].items()
                if name.startswith(f"{metric}/{dimension}=")
            ]
            assert sum(parts) == len(errors), (metric, dimension)


def test_outcomes_agree_with_the_bytes(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--data", sample)
    assert {one["measured"] for one in found["outcomes"]} == {"ok", "oom", "failed"}
    for one in found["outcomes"]:
        if one["predicted_fits"]:
            assert one["required_bytes"] <= one["usable_bytes"]
    failed = {one["id"] for one in found["outcomes"] if one["measured"] != "ok"}
    assert not failed & {one["id"] for one in found["rows"]}, "a failed run has no peak"


def test_csv_says_the_same(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--data", sample)
    out, _ = run(capsys, "--data", sample, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    for section in ("rows", "outcomes", "skipped", "invalid"):
        of_section = [line for line in lines if line["section"] == section]
        assert len(of_section) == len(found[section])
        for line, one in zip(of_section, found[section], strict=True):
            assert all(line[name] == str(value) for name, value in one.items())
    assert sum(line["section"] == "summary" for line in lines) == len(found["summary"])


def test_table_fits_80_columns_and_names_what_matters(
    sample: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "--data", sample)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    for words in ("median", "signed", "p90", "worst rows", "skipped", "does not fit"):
        assert words in out
    assert not err, "no progress where stderr is no terminal"


def test_markdown_tables_are_whole(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--data", sample, "--format", "markdown")
    tables = [block for block in out.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 4
    for table in tables:
        widths = {line.replace("\\|", "").count("|") for line in table.splitlines() if line}
        assert len(widths) == 1, table


def test_one_row_with_its_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--row", RUN, "--explain")
    for words in (RUN, "measured", "predicted", "ledger at the peak", "requires", "instants"):
        assert words in out


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_one_row_with_its_ledger_in_every_format(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(capsys, "--row", RUN, "--explain", "--format", form)
    assert "optimizer" in out
    if form == "json":
        found = json.loads(out)
        jsonschema.validate(found, SCHEMA)
        allocated = found["plan"]["memory"]["allocated_bytes"]
        assert allocated in {one["predicted"] for one in found["rows"]}
        assert found["plan"]["ledger"]


def test_a_row_that_cannot_be_expressed_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--row", "minicpmv-001", "--explain")
    assert "hidden size is not stated" in " ".join(out.split())


def test_metric_leaves_the_others_out(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--data", sample, "--metric", "reserved_peak_bytes")
    assert {one["metric"] for one in found["rows"]} == {"reserved_peak_bytes"}
    assert {name.partition("/")[0] for name in found["summary"]} == {"reserved_peak_bytes"}
    assert found["outcomes"]


def test_worst_is_ordered_and_counted(sample: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--data", sample, "--worst", "3", "--format", "markdown")
    block = next(b for b in out.split("\n\n") if b.startswith("| row "))
    assert len(block.splitlines()) == 2 + 3


def test_malformed_rows_are_named_and_exit_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    good = row_of(RUN)
    write(path, [good | {"id": "bad", "allocated_peak_bytes": "-1"}, good, good])
    found = document(capsys, "--data", str(path), code=1)
    assert {(one["line"], one["column"]) for one in found["invalid"]} == {
        (2, "allocated_peak_bytes"),
        (4, "id"),
    }
    assert {one["id"] for one in found["rows"]} == {RUN}
    for form in ("table", "markdown", "csv"):
        out, _ = run(capsys, "--data", str(path), "--format", form, code=1)
        assert "negative" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "/nowhere/rows.csv"], "cannot be read"),
        (["--data", "."], "cannot be read"),
        (["--row", "fms-a100-main-9999"], "did you mean fms-a100-main-"),
        (["--explain"], "--explain needs --row"),
        (["--metric", "allocated"], "--metric"),
        (["--worst", "-1"], "--worst"),
        (["--data", __file__], "has no column 'id'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exits_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, *arguments, code=2)
    assert not out
    assert len(err.splitlines()) == 1
    assert words in err


def test_the_command_needs_no_extra(sample: str) -> None:
    """The bare wheel: neither torch nor pandas nor numpy."""
    code = (
        "import sys; from vram_plan.app.main import main\n"
        f"try: main(['validate', '--data', {sample!r}])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'transformers', 'peft', 'deepspeed'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stderr.strip() == "[]"


def test_progress_is_said_at_a_terminal_only_after_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vram_plan.app.validate_command as module

    clock = iter(number * 0.3 for number in range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    rows: list[Any] = [object()] * 8
    assert list(module._with_progress(rows, "rows")) == rows
    _, err = capsys.readouterr()
    said = [part for part in err.split("\r") if part.strip()]
    assert said[0] == "3 rows predicted"
    assert err.endswith("\r")
