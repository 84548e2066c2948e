"""Suites: what they may say, and what is refused by line and key."""

from pathlib import Path

import pytest

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
    for job in read_suite(path):
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
