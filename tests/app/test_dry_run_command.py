"""The dry run as a person calls it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vram_plan.app.dry_run_command as command
from vram_plan.app.main import main

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

SCHEMA = json.loads((Path(command.__file__).parent / "schemas" / "measurement.json").read_text())
SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3001,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    return str(path)


def run(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["dry-run", *arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out, err


def document(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out, _ = run([*arguments, "--format", "json"], capsys)
    found: dict[str, Any] = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    return found


def test_the_plan_stands_beside_what_was_seen(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(["--model", small, "--seq-len", "64", "--whole"], capsys)
    memory = found["memory"]
    assert found["outcome"] == "ok"
    assert found["extended_from"] is None
    assert sum(memory["components"].values()) == memory["allocated_bytes"]
    assert memory["instants"][memory["peak_instant"]] == memory["allocated_bytes"]
    assert max(size for _, size in found["timeline"]) == memory["allocated_bytes"]
    assert found["plan"]["allocated_bytes"] == pytest.approx(memory["allocated_bytes"], rel=0.005)
    assert found["environment"]["libraries"]["torch"] is not None


def test_a_deep_model_is_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL | {"num_hidden_layers": 40}))
    found = document(["--model", str(path), "--seq-len", "64", "--method", "lora"], capsys)
    assert found["layers"] == 40
    assert max(found["extended_from"]) < 40
    seen = found["memory"]["allocated_bytes"]
    assert found["plan"]["allocated_bytes"] == pytest.approx(seen, rel=0.005)


def test_the_terminal_shows_peak_and_timeline(
    small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(["--model", small, "--seq-len", "64", "--timeline", "--explain"], capsys)
    assert "at the step's peak" in out
    assert "▲ peak" in out
    assert "largest at the peak" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_cannot_be_traced_is_one_line(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(["--model", small, "--method", "adapter-houlsby"], capsys, code=2)
    assert "adapter-houlsby" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "option", ["--stack transformers=4.48.1", "--compile", "--optimizer-in-backward"]
)
def test_options_that_no_trace_carries_out_are_refused(
    small: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(["--model", small, *option.split()], capsys, code=2)
    assert option.split()[0] in err
    assert "leave it out" in err


def test_a_missing_library_names_the_extra(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vram_plan.bench.dry_run.missing_libraries", lambda names: ("torch",))
    _, err = run(["--model", small], capsys, code=2)
    assert "pip install 'vram-plan[bench]'" in err


def test_a_library_that_fails_is_an_outcome(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: object) -> None:
        raise RuntimeError("a kernel\nis missing")

    monkeypatch.setattr("vram_plan.bench.trace.extend.trace_step", broken)
    out, _ = run(["--model", small, "--format", "json"], capsys, code=1)
    found = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    assert found["outcome"] == "error"
    assert found["error"] == "RuntimeError: a kernel is missing"
