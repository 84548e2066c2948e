"""What `vram-plan search` prints, in every format, and how it says no."""

import csv
import io
import json
from itertools import islice
from pathlib import Path

import jsonschema
import pytest

import vram_plan.app.search_json as search_json
from vram_plan.app.main import main
from vram_plan.app.search_options import seconds
from vram_plan.app.search_ties import also
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search.by_memory import by_memory
from vram_plan.estimator.search.space import parse_space
from vram_plan.estimator.search.task import Settled, Task
from vram_plan.estimator.search.wish import Candidate, Wish
from vram_plan.profiles.models import resolve_model

SCHEMA = json.loads((Path(search_json.__file__).parent / "schemas" / "search.json").read_text())
SMALL = "search --model gpt2 --gpus 1..2 --gpu a100-80gb-sxm,t4 --seq-len 512"


def run(arguments: str, capsys: pytest.CaptureFixture[str], *, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out, err


@pytest.mark.parametrize(
    "wish",
    [
        "--objective memory",
        "--objective throughput --tokens 10m",
        "--objective cost --max-usd-per-hour 3",
        "--objective time --global-batch 16 --tokens 1b --deadline 30d",
        "--objective cost --samples 1m --epochs 3 --usd-per-gpu-hour 1.25 --deadline 30d",
        "--objective cost --tokens 1b --usd-per-kwh 0.3 --purchase-usd 20000 --pue 1.3",
    ],
)
def test_json_keeps_its_schema(wish: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(f"{SMALL} {wish} --format json", capsys)[0])
    jsonschema.validate(found, SCHEMA)
    total = found["fitting"] + sum(found["ruled_out"].values())
    assert total == found["space"]["raw_configurations"]
    assert found["plans"]
    for plan in found["plans"] + found["pareto"]:
        assert plan["headroom_bytes"] == plan["usable_bytes"] - plan["required_bytes"]


def test_the_command_it_prints_is_the_plan_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(f"{SMALL} --method lora --format json", capsys)[0])
    best = found["plans"][0]
    arguments = best["command"].removeprefix("vram-plan ")
    plan = json.loads(run(f"{arguments} --format json", capsys)[0])
    assert plan["config"] == best["config"]
    assert plan["memory"]["required_bytes"] == best["required_bytes"]
    assert plan["fits"][0]["fits"]


@pytest.mark.parametrize("format_", ["table", "markdown"])
def test_words_say_why_and_what_was_ruled_out(
    format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = run(f"{SMALL} --format {format_}", capsys)
    assert "\x1b[" not in out
    assert "with another choice" in " ".join(out.split())
    assert "vram-plan --model gpt2" in out
    assert "refused: --precision bf16 on this GPU" in out


@pytest.mark.parametrize("more", ["", "--tokens 1b", "--objective memory"])
def test_every_line_fits_a_terminal_but_the_command(
    more: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = run(f"{SMALL} {more}", capsys)
    lines = [line for line in out.splitlines() if not line.startswith("  vram-plan ")]
    assert max(map(len, lines)) <= 80
    assert "GiB required" in out


def test_plans_that_come_to_the_same_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    asked = "search --model gpt2 --gpus 1,8 --gpu a100-80gb-sxm --seq-len 512 --zero any --top 3"
    found = json.loads(run(f"{asked} --format json", capsys)[0])
    jsonschema.validate(found, SCHEMA)
    best = found["plans"][0]
    assert best["ties"]
    for tie in best["ties"]:
        arguments = tie["command"].removeprefix("vram-plan ")
        plan = json.loads(run(f"{arguments} --format json", capsys)[0])
        assert plan["step"]["tokens_per_second"] == pytest.approx(best["tokens_per_second"], 1e-3)
        assert tie["options"].items() <= plan["config"].items()
    values = ", ".join(str(tie["options"]["zero"]) for tie in best["ties"])
    assert f"also --zero {values}: same speed to 0.1 %" in " ".join(run(asked, capsys)[0].split())
    rows = csv.DictReader(io.StringIO(run(f"{asked} --format csv", capsys)[0]))
    assert next(rows)["ties"] == str(len(best["ties"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([], ""),
        ([{"zero": 1}, {"zero": 2}], "; also --zero 1, 2: same memory to 0.1 %"),
        (
            [{"zero": 1}, {"gpus": 2}, {"zero": 1, "gpus": 2}],
            "; also --zero 1; --gpus 2: same memory to 0.1 %",
        ),
        ([{"zero": 1, "gpus": 2}], "; also --gpus 2 --zero 1: same memory to 0.1 %"),
        (
            [{"gpus": n} for n in range(2, 9)],
            "; also --gpus 2, 3, 4, 5 and 3 more: same memory to 0.1 %",
        ),
        ([{"zero": None}], "; also --zero none: same memory to 0.1 %"),
    ],
)
def test_ties_are_named_in_a_line(changes: list[dict[str, object]], said: str) -> None:
    space = parse_space(resolve_model("gpt2"), {"gpus": "1..8", "zero": "any"})
    mine = {"gpus": 1, "zero": 0, "gpu": None}
    config = resolve(space.model, {"zero": 0})
    others = tuple(
        Candidate(order=space.place(mine | change), config=config, required_bytes=1)
        for change in changes
    )
    plan = Candidate(order=space.place(mine), config=config, required_bytes=1, ties=others)
    assert also(space, Wish(objective="memory"), plan) == said


def test_csv_has_a_row_for_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(run(f"{SMALL} --top 3 --format csv", capsys)[0])))
    assert [row["rank"] for row in rows if row["list"] == "best"] == ["1", "2", "3"]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)


def test_the_stage_and_checkpointing_are_searched_unless_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(run(f"{SMALL} --format json", capsys)[0])
    assert {"zero", "checkpointing"} <= set(found["space"]["ranges"])
    fixed = f"{SMALL} --engine fsdp2 --checkpointing full --format json"
    assert set(json.loads(run(fixed, capsys)[0])["space"]["ranges"]) == {"gpus", "gpu"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--gpus 8..1", "the range is empty; write 1..8"),
        ("--gpus 1..x", "choose a number, a list 1,2,4, a range 1..64"),
        ("--gpus 1,,2", "a value is missing"),
        ("--checkpointing some", "choose any or from none, selective, full, offload"),
        ("--gpu nothing", "unknown GPU 'nothing'"),
        ("--objective speed", "choose from throughput, cost, time, memory"),
        ("--objective cost", "needs --gpu"),
        ("--gpu t4 --deadline 3h", "--deadline needs --tokens or --samples"),
        ("--gpu t4 --epochs 2", "--epochs needs --samples or --tokens"),
        ("--gpu t4 --tokens 1b --samples 5", "give one"),
        ("--samples 5", "--samples needs --gpu"),
        ("--gpu t4 --samples 5 --seq-len 512,1024", "give --tokens, or one length"),
        ("--gpu t4 --usd-per-gpu-hour 0", "--usd-per-gpu-hour must be positive"),
        ("--gpu t4 --deadline soon", "write 90m, 12h or 3d"),
        ("--gpu t4 --global-batch 0", "--global-batch must be positive"),
        ("--gpu t4 --global-batch 8 --grad-accum 2", "it follows from it; drop one"),
        ("--gpus 1..9999 --lora-rank 1..999 --tp any --pp any", "narrow a range, or give --yes"),
        ("--micro-batch 0", "--micro-batch must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(f"search --model gpt2 {arguments}", capsys, code=2)
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_the_whole_training_costs_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    amount = "--samples 20k --epochs 2 --usd-per-gpu-hour 1.5 --usd-per-kwh 0.25 --pue 1.2"
    arguments = f"{SMALL} --objective cost {amount} --format json"
    best = json.loads(run(arguments, capsys)[0])["plans"][0]
    plan = json.loads(run(f"{best['command'][10:]} --format json", capsys)[0])
    names = ("usd_per_hour", "usd_per_million_tokens", "hours", "usd", "kwh", "usd_power")
    for name in names:
        assert best[name] == pytest.approx(plan["cost"][name], rel=1e-9), name
    assert best["price_source"] == plan["cost"]["price_source"] == "--usd-per-gpu-hour"
    assert best["usd_per_hour"] == 1.5 * best["config"]["gpus"]
    assert plan["cost"]["tokens"] == 20_000 * 2 * 512


def test_a_deadline_counts_samples_and_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    def hours(more: str) -> list[float]:
        found = json.loads(
            run(f"{SMALL} --objective cost --top 40 --format json {more}", capsys)[0]
        )
        return [plan["hours"] for plan in found["plans"]]

    free = hours("--samples 1m --epochs 2")
    limit = round(60 * min(free)) + 1
    assert max(free) * 60 > limit
    in_time = hours(f"--samples 1m --epochs 2 --deadline {limit}m")
    assert in_time
    assert max(in_time) * 60 <= limit


def test_a_price_of_ones_own_opens_what_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    words = "search --model gpt2 --gpu t4 --precision fp16 --objective cost --max-usd-per-hour 5"
    found = json.loads(run(f"{words} --gpus 1..4 --usd-per-gpu-hour 2 --format json", capsys)[0])
    assert {plan["config"]["gpus"] for plan in found["plans"]} <= {1, 2}
    assert all(plan["usd_per_hour"] <= 5 for plan in found["plans"])


def test_nothing_fits_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run("search --model 70b --gpus 1 --gpu rtx-4090", capsys)
    assert "no configuration meets every constraint" in out
    assert "does not fit" in out


def test_interrupted_prints_the_best_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(task: Task) -> Settled:
        yield from islice(by_memory(task), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr("vram_plan.estimator.search.search.by_memory", interrupted)
    out, _ = run("search --model gpt2 --gpus 1..4 --format json", capsys, code=130)
    found = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    assert not found["complete"]
    assert found["plans"]
    total = found["fitting"] + sum(found["ruled_out"].values())
    assert total == found["space"]["raw_configurations"]


def test_amounts() -> None:
    assert [seconds(text) for text in ("90m", "12h", "1.5d", "2")] == [5400, 43200, 129600, 7200]


@pytest.mark.parametrize(
    ("arguments", "option", "name"),
    [
        ("--model gpt2 --gpu t4 --precision fp16 --max-batch", "micro_batch", "--max-batch"),
        ("--model 1b --method lora --gpu rtx-4090 --max-seq-len", "seq_len", "--max-seq-len"),
        ("--model gpt2 --gpu t4 --precision fp16 --max-seq-len", "seq_len", "--max-seq-len"),
    ],
)
def test_the_largest_fits_and_the_next_does_not(
    arguments: str, option: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(run(f"{arguments} --format json", capsys)[0])
    assert found["fits"][0]["fits"]
    largest = found["config"][option]
    assert any(f"{largest} is the largest that fits" in note for note in found["assumptions"])
    spelled = "--" + option.replace("_", "-")
    beyond = f"{arguments.replace(name, '')} {spelled} {largest + 1} --format json"
    with pytest.raises(SystemExit) as stop:
        main(beyond.split())
    out, err = capsys.readouterr()
    if stop.value.code == 2:
        assert "positions" in err  # the model's table ends there
    else:
        assert not json.loads(out)["fits"][0]["fits"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--max-batch", "needs --gpu"),
        ("--gpu t4 --max-batch --micro-batch 4", "--max-batch with --micro-batch 4: drop one"),
        ("--gpu t4 --max-batch --max-seq-len", "drop one"),
        ("--gpu rtx-2060-6gb --precision fp16 --max-batch", "--micro-batch 1 misses by"),
    ],
)
def test_the_largest_says_no(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(f"--model 1b {arguments}", capsys, code=2)
    assert said in err
