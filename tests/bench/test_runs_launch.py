"""How a run can end, each way for real: in a process of its own that is gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vram_plan.bench.runs.failures import of_exception, of_exit
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Limits, launch
from vram_plan.bench.runs.record import measurement_of

pytest.importorskip("torch")

ON_CPU = {"seq_len": 32, "attention": "eager", "precision": "fp32", "weights_dtype": "fp32"}


@pytest.fixture
def job(tiny_model: str) -> Job:
    return Job(model=tiny_model, options=ON_CPU, steps=2, warmup_steps=1)


def test_a_run_measures_time_and_memory(job: Job) -> None:
    said: list[str] = []
    ended = launch(job, say=said.append)
    seen = measurement_of(job, job.predict(), ended)
    assert ended.failure is None, ended.log
    assert seen.outcome == "ok"
    assert len(seen.step_seconds) == 2
    assert len(seen.warmup_seconds) == 1
    assert seen.allocated_bytes == max(instant.bytes for instant in seen.instants)
    assert seen.losses[1] < seen.losses[0]
    assert "step 0" in said


@pytest.mark.parametrize(
    ("fault", "outcome"), [("oom", "oom"), ("exit", "crash"), ("hang", "hang")]
)
def test_a_run_that_ends_badly_is_a_measurement(
    job: Job,
    fault: str,
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
    own_processes: Callable[[], list[int]],
) -> None:
    monkeypatch.setenv("VRAM_PLAN_FAULT", fault)
    ended = launch(job, limits=Limits(first_step=2.0 if fault == "hang" else 60.0))
    assert ended.failure is not None
    assert ended.failure.outcome == outcome
    seen = measurement_of(job, job.predict(), ended)
    assert seen.outcome == outcome
    assert seen.allocated_bytes is None
    if fault == "oom":
        assert ended.failure.requested_bytes == int(2.5 * 2**30)
    assert not own_processes()


def test_a_worker_killed_in_the_middle_of_a_step_is_told(
    job: Job, own_processes: Callable[[], list[int]]
) -> None:
    """A step of thousands of micro-batches: the kill comes while it computes."""
    long = replace(job, options={**ON_CPU, "grad_accum": 5000})

    def kill(text: str) -> None:
        if text == "step 0":
            for pid in own_processes():
                os.kill(pid, signal.SIGKILL)

    ended = launch(long, hertz=0, say=kill)
    assert ended.failure is not None
    assert ended.failure.outcome == "killed"
    assert ended.stage == "step"
    assert not own_processes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_leaves_no_process(
    job: Job, tmp_path: Path, number: int, own_processes: Callable[[], list[int]]
) -> None:
    arguments = ["bench", "run", "--model", job.model, "--seq-len", "8", "--device", "cpu"]
    arguments += ["--store", str(tmp_path / "store"), "--hertz", "5"]
    program = f"from vram_plan.app.main import main; main({arguments!r})"
    environment = {**os.environ, "VRAM_PLAN_FAULT": "hang", "TMPDIR": str(tmp_path)}
    sweep = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL
    )
    runs = until(lambda: [p for p in tmp_path.glob("*/progress.jsonl") if "step" in p.read_text()])
    assert runs
    sweep.send_signal(number)
    assert sweep.wait(30) in (130, -signal.SIGKILL)
    assert until(lambda: not own_processes())
    assert not list((tmp_path / "store").glob("runs/*"))


def until(true: Callable[[], Any], patience: float = 60.0) -> Any:
    """What is waited for, or whatever it is when patience ends."""
    end = time.monotonic() + patience
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


@pytest.mark.parametrize(
    ("kind", "message", "whose"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB.", "torch"),
        ("RuntimeError", "NCCL error: Failed to CUDA malloc 4194304 bytes", "nccl"),
        (
            "RuntimeError",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
            "cublas",
        ),
        ("MemoryError", "", "host"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried", "host"),
    ],
)
def test_whose_memory_ran_out(kind: str, message: str, whose: str) -> None:
    found = of_exception(kind, message)
    assert found.outcome == "oom"
    assert found.whose == whose


def test_other_errors_are_errors() -> None:
    assert of_exception("ValueError", "zoom out of memory lane").outcome == "error"
    assert of_exit(1, "one\nlast words\n").message.endswith("last words")
    assert "SIGSEGV" in of_exit(-signal.SIGSEGV, "").message
