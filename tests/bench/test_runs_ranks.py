"""Runs of several ranks, for real: torchrun's, and one that pretends to have others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vram_plan.bench.runs.group import command
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended, Limits, launch
from vram_plan.bench.runs.record import measurement_of

pytest.importorskip("deepspeed")

PLAIN = {"seq_len": 32, "attention": "eager", "precision": "fp32", "weights_dtype": "fp32"}
ZERO = {"seq_len": 32, "attention": "eager", "zero": 3}
#: Real ranks ask each other for a few numbers; the allocator counts 512 bytes for each.
SCALARS = 1024


def ended(job: Job, **limits: Any) -> Ended:
    return launch(job, limits=Limits(**limits), hertz=0)


def test_a_virtual_rank_allocates_what_a_real_one_does(tiny_model: str) -> None:
    """Stage 3, which gathers, prefetches and reduces: all of DeepSpeed's buffers."""
    virtual = Job(model=tiny_model, options=ZERO, ranks="virtual:2", steps=1, warmup_steps=1)
    real = replace(virtual, ranks="real", options={**ZERO, "gpus": 2})
    found = {job.ranks: ended(job) for job in (virtual, real)}
    for one in found.values():
        assert one.failure is None, one.log
    seen, other = (one.result or {} for one in found.values())
    assert seen["instants"] == pytest.approx(other["instants"], abs=SCALARS)
    assert len(other["step_seconds"]) == 1
    assert other["losses"][1] < other["losses"][0]
    assert seen["states"] == other["states"]
    components = virtual.predict().memory.components
    for name in ("weights", "master_weights", "optimizer_states"):
        assert seen["states"][name] == pytest.approx(components[name], rel=0.01)
    record = measurement_of(virtual, virtual.predict(), found[virtual.ranks]).to_document()
    assert record["virtual_ranks"] == 2
    assert record["step_seconds"] == record["losses"] == []
    assert record["memory"]["device_bytes"] is None
    assert "fake process group" in record["notes"][0]


def test_a_rank_that_dies_alone_ends_the_run(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, own_processes: Callable[[], list[int]]
) -> None:
    monkeypatch.setenv("VRAM_PLAN_FAULT", "kill:1:1")
    job = Job(model=tiny_model, options={**PLAIN, "gpus": 2}, steps=1, warmup_steps=1)
    found = ended(job)
    assert found.failure is not None
    assert found.failure.outcome == "killed", found.log
    assert "rank 1 died alone" in found.failure.message
    assert not own_processes()


def test_fsdp_as_one_rank_of_eight(tiny_model: str) -> None:
    """The plan's own prediction, for a job that no test machine could run."""
    options = {**PLAIN, "fsdp": "full-shard"}
    job = Job(model=tiny_model, options=options, ranks="virtual:8", steps=1, warmup_steps=1)
    found = ended(job)
    seen = measurement_of(job, job.predict(), found)
    assert seen.outcome == "ok", found.log
    assert seen.plan is not None
    assert seen.config["gpus"] == 8
    assert abs(seen.plan["error"]) < 0.03


def test_engines_with_ranks_are_torchruns(tiny_model: str, tmp_path: Path) -> None:
    job = Job(model=tiny_model, options={**PLAIN, "gpus": 2})
    words = command(job.predict().config, tmp_path, virtual=False)
    assert "vram_plan.bench.runs.torchrun" in words
    assert words[words.index("--nproc-per-node") + 1] == "2"
    assert "vram_plan.bench.runs.torchrun" not in command(
        job.predict().config, tmp_path, virtual=True
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ranks": "virtual"}, "virtual:8"),
        ({"ranks": "virtual:1"}, "virtual:8"),
        ({"ranks": "some"}, "virtual:8"),
        ({"ranks": "virtual:4", "options": {"gpus": 2}}, "leave one of them out"),
        ({"ranks": "virtual:4", "loop": "trainer"}, "waits for the other ranks"),
    ],
)
def test_ranks_that_mean_nothing(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Job(**{"model": "gpt2", **changes})
