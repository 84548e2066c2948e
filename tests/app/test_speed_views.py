"""Step time and cost in every format of the plan, and what is said where there is none."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import vram_plan.app.json_format as json_format
from vram_plan.app.main import main

SCHEMA = json.loads((Path(json_format.__file__).parent / "schemas" / "plan.json").read_text())
ONE = "--model llama-2-7b --method lora --checkpointing full --gpu a100-80gb-sxm"
RUN = "--tokens 100M --usd-per-kwh 0.15 --purchase-usd 20000 --utilization 0.5"


def run(arguments: str, capsys: pytest.CaptureFixture[str], *, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out, err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(f"{ONE} {RUN} --format json", capsys)[0])
    jsonschema.validate(found, SCHEMA)
    step, cost = found["step"], found["cost"]
    assert sum(step["parts"].values()) == pytest.approx(step["seconds"])
    assert 0 < step["mfu"] <= step["hfu"] < 1
    assert step["tokens_per_second"] == pytest.approx(2048 / step["seconds"])
    assert cost["hours"] == pytest.approx(1e8 / step["tokens_per_second"] / 3600)
    assert cost["usd"] == pytest.approx(cost["hours"] * cost["usd_per_hour"])
    assert cost["break_even"]["months"] > 0
    assert all(" " not in key for key in step["parts"])


def test_explain_lists_what_travels(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--model gpt2 --zero 2 --gpus 8 --gpu a100-80gb-sxm --explain"
    found = json.loads(run(f"{arguments} --format json", capsys)[0])
    jsonschema.validate(found, SCHEMA)
    assert {"communication_all_reduce", "communication_all_gather"} <= {
        one["part"] for one in found["transfers"]
    }
    out, _ = run(arguments, capsys)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "all-gather of updated weights" in out


def test_a_card_of_unknown_form_factor_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("--model gpt2 --gpus 8 --gpu a100-80gb", capsys)
    assert "form factor unknown" in out
    assert "form factor" not in run("--model gpt2 --gpus 8 --gpu a100-80gb-sxm", capsys)[0]


def test_without_a_gpu_both_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run("--model gpt2 --format json", capsys)[0])
    jsonschema.validate(found, SCHEMA)
    assert found["step"] is None
    assert found["cost"] is None


def test_what_is_not_modelled_is_null_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--model gpt2 --task inference --gpu a100-80gb-sxm --format json"
    found = json.loads(run(arguments, capsys)[0])
    jsonschema.validate(found, SCHEMA)
    assert found["step"] is None
    assert "step time: the speed of inference is not modelled" in found["assumptions"]


def test_disks_that_the_catalogue_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    infinity = "--model gpt2 --zero 3 --gpus 8 --gpu h100-80gb-sxm --format json"
    infinity += " --offload optimizer --offload-device nvme"
    unknown = json.loads(run(infinity, capsys)[0])
    assert unknown["step"] is None
    assert any("--nvme-gb-s" in line for line in unknown["assumptions"])
    found = json.loads(run(f"{infinity} --nvme-gb-s 25,12", capsys)[0])
    assert found["step"]["parts"]["offload_transfer"] > 0


def test_table_fits_80_columns_and_says_speed_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(f"{ONE} {RUN}", capsys)
    lines = out.splitlines()
    assert max(len(line) for line in lines) <= 80
    top = "\n".join(lines[:8])
    assert "tokens/s" in top
    assert "MFU" in top
    assert "matrix products" in out
    assert "kWh" in out
    assert "buying at $20,000 a GPU pays after" in out


def test_table_without_a_gpu_says_nothing_of_speed(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("--model gpt2", capsys)
    assert "tokens/s" not in out
    assert "step time" not in out


def test_a_plan_that_does_not_fit_says_so_beside_its_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, _ = run("--model 7b --gpu rtx-4090", capsys)
    assert ", if it fitted" in out
    assert "if it fitted" not in run(ONE, capsys)[0]


def test_markdown_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(f"{ONE} {RUN} --format markdown", capsys)
    assert "| part of the step | time | share |" in out
    out, _ = run(f"{ONE} {RUN} --format csv", capsys)
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(out))}
    assert float(rows["step:seconds"]) > float(rows["step:parts:matrix_products"]) > 0
    assert float(rows["cost:usd"]) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--model gpt2 --tokens 1B", "--tokens needs --gpu"),
        (f"{ONE} --epochs 3", "--epochs needs --samples"),
        (f"{ONE} --tokens 1B --samples 5", "give one"),
        (f"{ONE} --tokens many", "many is no number"),
        (f"{ONE} --tokens 1B --utilization 2", "--utilization"),
        (f"{ONE} --nvme-gb-s 7", "--nvme-gb-s 7: give READ,WRITE"),
        (f"{ONE} --nvme-gb-s 0,7", "both rates must be positive"),
        ("--model gpt2 --nvme-gb-s 7,7", "--nvme-gb-s needs --gpu"),
    ],
)
def test_refusals(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(arguments, capsys, code=2)
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_plan_without_a_gpu_imports_nothing_of_speed() -> None:
    code = (
        "import sys\n"
        "from vram_plan.app.main import main\n"
        "try:\n    main(['--model', '7b', '--zero', '2', '--gpus', '8'])\n"
        "except SystemExit:\n    pass\n"
        "found = [name for name in sys.modules if 'estimator.speed' in name]\n"
        "sys.exit(', '.join(found) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
