"""Suites: what they may say, and what is refused by line and key."""

from pathlib import Path

import pytest

from vram_plan.bench.runs.boundary import expanded
from vram_plan.bench.runs.job import Job, at_depth
from vram_plan.bench.runs.suite import SHIPPED, find_suite, read_suite


def suite(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return path


def test_lists_are_axes(tmp_path: Path) -> None:
    text = "[run]\nrepeats = 2\n[[cell]]\nmodel = 'gpt2'\nmethod = ['full', 'lora']\nseq_len = 64\n"
    jobs = read_suite(suite(tmp_path, text))
    assert len(jobs) == 4
    assert {job.options["method"] for job in jobs} == {"full", "lora"}
    assert len({job.key for job in jobs}) == 4
    assert len({job.series for job in jobs}) == 2


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: str(path.stem))
def test_shipped_suites_can_be_planned(path: Path) -> None:
    for job in expanded(read_suite(path), "h100-80gb-sxm"):
        assert job.predict().memory.allocated_bytes > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no \\[\\[cell\\]\\]"),
        ("[[cell]]\nmodel = 'gpt2'\nmetod = 'lora'\n", "line 3: metod: unknown key.*method"),
        ("[[cell]]\nmodel = 'gpt2'\nmethod = []\n", "line 3: method: an empty list"),
        ("[[cell]]\nmodel = 'gpt2'\nseq_len = {a = 1}\n", "line 3: seq_len"),
        ("[[cell]]\nseq_len = 1\n", "needs a model"),
        ("[run]\nsteps = 0\n[[cell]]\nmodel = 'gpt2'\n", "line 2: steps"),
        ("[run]\nrepeats = 'x'\n[[cell]]\nmodel = 'gpt2'\n", "line 2: repeats"),
        ("[run]\nspeed = 1\n[[cell]]\nmodel = 'gpt2'\n", "line 2: speed: unknown key"),
        ("[[cell]\n", "suite"),
    ],
)
def test_bad_suites_are_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_suite(suite(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 1


def test_a_million_cells_are_counted_before_they_are_made(tmp_path: Path) -> None:
    lengths = ", ".join(map(str, range(8, 1008)))
    text = f"[[cell]]\nmodel = 'gpt2'\nseq_len = [{lengths}]\nmicro_batch = [{lengths}]\n"
    with pytest.raises(ValueError, match=r"line 3: seq_len: 1,000,000 runs in all: add --yes"):
        read_suite(suite(tmp_path, text), 1000)


def test_what_a_cell_says_of_its_run(tmp_path: Path) -> None:
    """A file is looked for beside the suite; ranks and loops are axes like others."""
    (tmp_path / "own.jsonl").write_text("")
    text = "[[cell]]\nmodel = 'gpt2'\ndata = 'own.jsonl'\nranks = ['virtual:2', 'virtual:8']\n"
    jobs = read_suite(suite(tmp_path, text))
    assert [job.virtual for job in jobs] == [2, 8]
    assert jobs[0].data == str(tmp_path / "own.jsonl")
    assert jobs[0].said()["data"] == "own.jsonl"
    with pytest.raises(ValueError, match="line 3: ranks"):
        read_suite(suite(tmp_path, "[[cell]]\nmodel = 'gpt2'\nranks = 'virtual:x'\n"))


def test_a_device_runs_what_it_can() -> None:
    on_cpu = Job(model="gpt2", options={"gpu": "a100-80gb-sxm"}).predict().config
    assert (on_cpu.attention, on_cpu.optimizer, on_cpu.gpu) == ("sdpa", "adamw-for-loop", None)
    on_gpu = Job(model="gpt2", device="cuda").predict("a100-80gb-sxm").config
    assert on_gpu.attention in {"flash", "sdpa"}
    assert on_gpu.optimizer == "adamw"
    assert on_gpu.gpu is not None
    asked = Job(model="gpt2", options={"attention": "eager", "zero": 2}).predict().config
    assert (asked.attention, asked.optimizer) == ("eager", "adamw")


def test_unknown_suites_name_the_shipped() -> None:
    with pytest.raises(ValueError, match="smoke"):
        find_suite("smokee")


def test_depth_cuts_the_lists_too() -> None:
    fields = {"num_hidden_layers": 4, "layer_types": ["a", "b", "a", "b"], "other": [1, 2]}
    assert at_depth(fields, 2) == {
        "num_hidden_layers": 2,
        "layer_types": ["a", "b"],
        "other": [1, 2],
    }
    with pytest.raises(ValueError, match="the model has 4"):
        at_depth(fields, 5)


def test_a_job_travels_as_json() -> None:
    job = Job(model="gpt2", options={"seq_len": 8})
    assert Job.from_json(job.to_json()) == job
    with pytest.raises(ValueError, match="device"):
        Job(model="gpt2", device="tpu")
