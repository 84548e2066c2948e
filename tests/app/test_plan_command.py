"""What the command prints, in every format, and how it says no."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vram_plan.app.json_format as json_format
from vram_plan.app.main import main

SCHEMA = json.loads((Path(json_format.__file__).parent / "schemas" / "plan.json").read_text())


def run(arguments: str, capsys: pytest.CaptureFixture[str], *, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out, err


def document(arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    out, _ = run(f"{arguments} --format json", capsys)
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        "--model 7b --zero 2 --gpus 8",
        "--model llama-2-7b --method qlora --gpu rtx-4090",
        "--model 6b --task inference --weights-dtype int8",
        "--model gpt2 --explain",
    ],
)
def test_json_keeps_its_schema(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(arguments, capsys)
    jsonschema.validate(found, SCHEMA)
    memory = found["memory"]
    assert sum(memory["components"].values()) == memory["allocated_bytes"]
    assert memory["required_bytes"] >= memory["allocated_bytes"]
    for fit in found["fits"]:
        assert fit["fits"] == (fit["verdict"] == "fits")
        assert fit["headroom_bytes"] == fit["usable_bytes"] - memory["required_bytes"]


def test_every_resolved_option_is_echoed(capsys: pytest.CaptureFixture[str]) -> None:
    from vram_plan.app.options import _OPTIONS

    config = document("--model 7b --zero 2 --gpus 8", capsys)["config"]
    names = {name.partition("/")[0].removeprefix("--").replace("-", "_") for name, _ in _OPTIONS}
    assert names - {"ds_config", "calibration"} <= set(config)  # files, read and gone
    assert config["engine"] == "deepspeed"
    assert config["gpus_per_node"] == 8


def test_default_command_is_plan(capsys: pytest.CaptureFixture[str]) -> None:
    short, _ = run("--model 7b --gpus 8 --zero 2", capsys)
    long, _ = run("plan --model 7b --gpus 8 --zero 2", capsys)
    assert short == long


def test_table_says_the_total_first_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, _ = run("--model 7b --zero 2 --gpus 8", capsys)
    assert max(len(line) for line in out.splitlines()) <= 80
    first = next(line for line in out.splitlines() if "GiB" in line)
    assert "per GPU, allocated" in first
    assert "--zero 3" in out
    assert "--checkpointing full" in out


def test_explain_shows_every_byte(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("--model 7b --zero 2 --gpus 8 --explain", capsys)
    assert "ledger at the peak" in out
    assert "arXiv" in out or "deepspeed" in out.lower()


def test_csv_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("--model gpt2 --format csv", capsys)
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(out))}
    assert int(rows["allocated_bytes"]) > int(rows["weights"]) > 0
    out, _ = run("--model gpt2 --format markdown", capsys)
    assert "| component | at the peak | share |" in out


def test_check_exits_1_when_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    run("--model 7b --gpu h100-80gb-sxm --method qlora --check", capsys)
    run("--model 7b --gpu rtx-3060-12gb --check", capsys, code=1)
    _, err = run("--model 7b --check", capsys, code=2)
    assert "--gpu" in err


def test_what_does_not_fit_names_ways_out(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("--model 7b --gpu rtx-4090", capsys)
    assert "does not fit" in out
    assert "smallest changes that make it fit" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model 7x", ("unknown model",)),
        ("--model llama-2-7", ("did you mean",)),
        ("--model 7b --gpu a100-80g", ("did you mean",)),
        ("--model 7b --gpus 0", ("--gpus", "between 1 and")),
        ("--model 7b --micro-batch -3", ("--micro-batch",)),
        ("--model 7b --seq-len 99999999999", ("--seq-len",)),
        ("--model 7b --tp 3 --gpus 8", ("8 GPUs are not divisible by 3",)),
        ("--model 7b --method lorra", ("--method", "lora")),
        ("--model 7b --zero 2 --fsdp full-shard", ("--fsdp",)),
        ("--model 7b --quantization nf4 --method full", ("--quantization", "--method lora")),
        ("--model 7b --gpu t4 --precision bf16", ("bf16", "--precision fp16")),
        ("--model 7b --zer 2", ("no such option", "--zero")),
        ("--model /nowhere/config.json", ("/nowhere/config.json",)),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(arguments, capsys, code=2)
    assert not out
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"model_type": "llama"}', '{"model_type": 3}', "\x00\xff", '{"a": 1}'],
)
def test_malformed_config_json(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    _, err = run(f"--model {tmp_path}", capsys, code=2)
    assert str(tmp_path) in err
    assert err.count("\n") == 1


def test_config_json_of_a_known_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vram_plan.profiles.models import raw_config

    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw_config("Qwen/Qwen2.5-0.5B")))
    by_file = document(f"--model {path}", capsys)
    by_name = document("--model qwen2.5-0.5b", capsys)
    assert by_file["memory"] == by_name["memory"]
    assert by_file["model"]["parameters"] == 494_032_768


@pytest.mark.parametrize("command", ["plan", "models", "gpus"])
def test_every_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(f"{command} --help", capsys)
    assert "Examples:" in out


def test_no_colour_when_piped() -> None:
    line = [sys.executable, "-m", "vram_plan.app", "--model", "gpt2"]
    out = subprocess.run(line, capture_output=True, check=True, env=os.environ | {"TERM": "xterm"})
    assert b"\x1b[" not in out.stdout


def test_catalogues_are_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("models qwen2.5 --format json", capsys)
    rows = json.loads(out)
    assert rows
    assert all("qwen2.5" in row["model"].lower() for row in rows)
    assert all(row["source"] for row in rows)
    out, _ = run("gpus --kind consumer --at-least 24 --format csv", capsys)
    assert "rtx-4090-24gb" in out
    assert "a100" not in out
