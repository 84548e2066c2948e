"""``bench`` as a person calls it, with a run that costs nothing in the place of a real one."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vram_plan.app import bench_compare
from vram_plan.app.main import main
from vram_plan.bench.runs import sweep
from vram_plan.bench.runs.failures import Failure
from vram_plan.bench.runs.launch import Ended

SEEN = {"instants": {"loss": 2**30}, "step_seconds": [0.2, 0.1, 0.3], "losses": [2.0, 1.0]}
VIRTUAL = Ended(
    result={"instants": {"loss": 2**30}}, failure=None, stage="save", seconds=1.0, log=""
)
OK = Ended(result=SEEN, failure=None, stage="save", seconds=1.0, log="")
CRASH = Ended(
    result=None,
    failure=Failure(outcome="crash", message="gone"),
    stage="step",
    seconds=1.0,
    log="",
)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out, err


def once(arguments: list[str], folder: Path) -> list[str]:
    shape = ["--model", "gpt2", "--layers", "2", "--seq-len", "32", "--device", "cpu"]
    return ["run", *shape, *arguments, "--store", str(folder)]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Ended]:
    """How the next runs end, the last of them first."""
    waiting: list[Ended] = []
    monkeypatch.setattr(sweep, "launch", lambda *args, **keywords: waiting.pop())
    return waiting


def test_what_is_stored_is_not_run_again_unless_it_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ends: list[Ended]
) -> None:
    ends += [OK, CRASH]
    out, _ = run(once([], tmp_path), capsys, code=1)
    assert "crash: gone" in out
    out, _ = run(once([], tmp_path), capsys)
    assert "1.000 GiB" in out
    assert "0.2 s a step" in out
    out, _ = run(once([], tmp_path), capsys)
    assert "ok (stored)" in out
    assert not ends


def test_stored_runs_are_listed_shown_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ends: list[Ended]
) -> None:
    ends += [OK]
    run(once([], tmp_path), capsys)
    out, _ = run(["list", "--store", str(tmp_path)], capsys)
    assert "openai-community/gpt2" in out
    rows = json.loads(run(["list", "--store", str(tmp_path), "--format", "json"], capsys)[0])
    shown = json.loads(run(["show", rows[0]["id"], "--store", str(tmp_path)], capsys)[0])
    assert shown["run"]["id"] == rows[0]["id"]
    out, _ = run(["export", "--store", str(tmp_path)], capsys)
    assert out.splitlines()[1].startswith(rows[0]["id"])


def schema(name: str) -> Any:
    folder = Path(bench_compare.__file__).parent / "schemas"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_stored_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ends: list[Ended]
) -> None:
    ends += [OK, CRASH, VIRTUAL]
    run(once(["--ranks", "virtual:8", "--zero", "3"], tmp_path), capsys)
    run(once(["--method", "lora"], tmp_path), capsys, code=1)
    run(once(["--gpu", "a100-80gb-sxm"], tmp_path), capsys)
    out, _ = run(["compare", "--store", str(tmp_path)], capsys)
    assert "one rank of 8" in out
    assert "not told apart" in out
    assert "crash: gone" in out
    assert "peak allocated: error over 2 runs" in out
    found = json.loads(run(["compare", "--store", str(tmp_path), "--format", "json"], capsys)[0])
    jsonschema.validate(found, schema("comparison"))
    shown = json.loads(run(["show", found["runs"][0]["id"], "--store", str(tmp_path)], capsys)[0])
    jsonschema.validate(shown, schema("measurement"))
    assert shown["virtual_ranks"] == 8
    assert shown["step_seconds"] == []
    out, _ = run(["export", "--redact", "--store", str(tmp_path)], capsys)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["outcome"] for line in lines] == ["ok", "crash", "ok"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "needs a suite or --model"),
        (["run", "nothing-like-this"], "unknown suite"),
        (["run", "smoke", "--model", "gpt2"], "--model with a suite"),
        (["run", "smoke", "--device", "cuda"], "--device with a suite"),
        (["run", "smoke", "--steps", "9"], "--steps with a suite"),
        (["run", "--model", "gpt2", "--ranks", "virtual:1", "--device", "cpu"], "virtual:8"),
        (["run", "--model", "gpt2", "--gpu", "voodoo", "--device", "cpu"], "voodoo"),
        (["run", "--model", "gpt2", "--repeats", "100000", "--device", "cpu"], "add --yes"),
        (["run", "--model", "gpt2", "--calibration", "x.toml", "--device", "cpu"], "leave it out"),
        (["list", "--store", "/nowhere/at/all"], "no such folder"),
        (["run", "--model", "gpt2", "--steps", "0", "--device", "cpu"], "steps"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(arguments, capsys, code=2)
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_missing_libraries_are_named_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vram_plan.bench.runs.device.missing_libraries", lambda: ("torch",))
    _, err = run(["run", "smoke"], capsys, code=2)
    assert "pip install 'vram-plan[bench]'" in err
