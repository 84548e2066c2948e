"""Faults for real: host memory that ends, a disk that is full, results that are damaged."""

import errno
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vram_plan.bench.runs import sweep as sweeping
from vram_plan.bench.runs.ending import ending, oom_kills
from vram_plan.bench.runs.failures import of_exit
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended, Limits, launch
from vram_plan.bench.runs.store import Store
from vram_plan.bench.runs.sweep import sweep

pytest.importorskip("torch")

WIDE = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 65536,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 131072,
}
OPTIONS = {"seq_len": 32, "attention": "eager", "precision": "fp32", "weights_dtype": "fp32"}
GOOD = {"instants": {"loss": 7}, "step_seconds": [0.1]}
ROOT_CAUSE = """Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : somewhere
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: 7)
  error_file: <N/A>
"""


def test_host_memory_that_ends_is_a_measurement(tmp_path: Path) -> None:
    """A limit of the process, which the system enforces."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(WIDE))
    job = Job(model=str(path), options=OPTIONS, steps=1, warmup_steps=1)
    ended = launch(job, limits=Limits(host_bytes=3 * 2**30), hertz=0)
    assert ended.failure is not None
    assert ended.failure.outcome == "oom", ended.log
    assert ended.failure.whose == "host"
    assert (ended.failure.requested_bytes or 0) > 2**28
    assert ended.stage == "load"


FULL = """
import json, resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
from vram_plan.bench.measurement import SCHEMA
from vram_plan.bench.runs.store import Store
document = {"schema": SCHEMA, "outcome": "ok", "run": {"id": "a"}, "filler": "x" * 100_000}
try:
    Store(Path(sys.argv[1])).add(document)
except ValueError as error:
    print(error)
"""


def test_a_full_disk_leaves_no_half_run(tmp_path: Path) -> None:
    """Every file of this process ends after 2 KiB, as on a disk without room."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "choose another folder" in done.stdout
    assert not list((tmp_path / "runs").iterdir())
    assert Store(tmp_path).finished() == {}


def test_a_worker_without_room_for_its_result_says_so() -> None:
    assert "the disk is full" in of_exit(errno.ENOSPC, "").message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"ok"', "{}", '{"instants": 3}', '{"instants": {"loss": 7}', "\x00\x01"]
)
def test_damaged_results_are_crashes(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    failure, result = ending(tmp_path, 0, "")
    assert failure is not None
    assert failure.outcome == "crash"
    assert result is None


def said(folder: Path, rank: int, at: float, kind: str, message: str) -> None:
    words = {"exception": kind, "message": message, "rank": rank, "at": at}
    (folder / f"failed-{rank}.json").write_text(json.dumps(words))


def test_the_first_rank_to_fail_is_the_cause(tmp_path: Path) -> None:
    said(tmp_path, 0, 2.0, "RuntimeError", "Connection closed by peer")
    said(tmp_path, 1, 1.0, "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")
    failure, _ = ending(tmp_path, 1, ROOT_CAUSE.format(rank=0, code=1))
    assert failure is not None
    assert failure.outcome == "oom"
    assert failure.requested_bytes == 2 * 2**30


def test_a_silent_death_explains_what_the_others_say(tmp_path: Path) -> None:
    said(tmp_path, 0, 2.0, "RuntimeError", "Connection closed by peer")
    failure, _ = ending(tmp_path, 1, ROOT_CAUSE.format(rank=3, code=-9))
    assert failure is not None
    assert failure.outcome == "killed"
    assert "rank 3 died alone" in failure.message
    memory, _ = ending(tmp_path, 1, ROOT_CAUSE.format(rank=3, code=-9), kills=1)
    assert memory is not None
    assert (memory.outcome, memory.whose) == ("oom", "host")


def test_the_launchers_own_signal_is_no_cause(tmp_path: Path) -> None:
    said(tmp_path, 0, 2.0, "ValueError", "no such layer")
    failure, _ = ending(tmp_path, 1, ROOT_CAUSE.format(rank=1, code=-15))
    assert failure is not None
    assert failure.message == "ValueError: no such layer"


def test_a_good_result_counts_whatever_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(GOOD))
    assert ending(tmp_path, 1, "") == (None, GOOD)
    failure, _ = ending(tmp_path, 0, "", stopped="hang:heartbeat")
    assert failure is not None
    assert failure.outcome == "hang"


def test_kills_for_memory_are_the_cgroups(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 2\noom_kill 3\noom_group_kill 1\n")
    assert oom_kills(events) == 3
    assert oom_kills(tmp_path / "none") == 0


def test_an_impossible_cell_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks cannot be split by two; the cell after it runs."""

    def end(job: Job, **how: object) -> Ended:
        return Ended(result=GOOD, failure=None, stage="save", seconds=1.0, log="")

    monkeypatch.setattr(sweeping, "launch", end)
    impossible = Job(model="gpt2", options={"zero": 3, "tp": 2, "gpus": 3})
    fine = Job(model="gpt2", options={"seq_len": 8})
    cells = list(sweep([impossible, fine], Store(tmp_path)))
    assert cells[0].refused
    assert cells[0].measurement is None
    assert cells[1].measurement is not None
    assert cells[1].measurement.outcome == "ok"
    assert list(Store(tmp_path).finished()) == [fine.key]


def test_two_sweeps_at_once_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may make a run that neither has stored yet: then it is there twice, under two names."""

    def end(job: Job, **how: object) -> Ended:
        return Ended(result=GOOD, failure=None, stage="save", seconds=1.0, log="")

    monkeypatch.setattr(sweeping, "launch", end)
    jobs = [Job(model="gpt2", options={"seq_len": length}) for length in range(8, 20)]

    def swept(order: list[Job]) -> list[str]:
        cells = list(sweep(order, Store(tmp_path)))
        return [str((one.measurement.run or {})["id"]) for one in cells if one.measurement]

    with ThreadPoolExecutor(2) as both:
        made = [one for found in both.map(swept, (jobs, jobs[::-1])) for one in found]
    stored = [one["run"]["id"] for one in Store(tmp_path).documents() if isinstance(one, dict)]
    assert sorted(stored) == sorted(made)
    assert len(set(made)) == len(made)
    assert Store(tmp_path).finished().keys() == {job.key for job in jobs}
    assert swept(jobs) == []
