"""Run one job in processes of its own, watch it, and say how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.failures import Failure, of_exception, of_exit
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.progress import Watched
from vram_plan.bench.runs.sampler import HERTZ, Sampler

__all__ = ["Ended", "Limits", "launch"]

Say = Callable[[str], None]
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0
_LOG_BYTES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds after which a run is stopped.

    Attributes:
        load: from the start to the first step.
        first_step: the first step, in which kernels are chosen and compiled.
        heartbeat: silence afterwards.
        overall: the whole run.
    """

    load: float = 600.0
    first_step: float = 300.0
    heartbeat: float = 120.0
    overall: float = 1800.0

    def __post_init__(self) -> None:
        for name in ("load", "first_step", "heartbeat", "overall"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds")

    def exceeded(self, watched: Watched, started: float) -> str | None:
        """``hang`` or ``timeout`` with the limit's name, or None."""
        now = time.monotonic()
        if now - started > self.overall:
            return "timeout:overall"
        silent = now - watched.heard
        steps = sum(line["stage"] == "step" for line in watched.lines)
        name = "load" if steps == 0 else "first_step" if steps == 1 else "heartbeat"
        return f"hang:{name}" if silent > getattr(self, name) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        result: what the worker wrote; None unless it finished.
        failure: what went wrong; None when nothing did.
        stage: the last stage heard of.
        seconds: from launch to end.
        log: the end of what the worker printed.
        samples: what the sampler saw, by column.
    """

    result: dict[str, Any] | None
    failure: Failure | None
    stage: str
    seconds: float
    log: str
    samples: dict[str, Any] | None = None


def launch(
    job: Job, *, limits: Limits | None = None, hertz: float = HERTZ, say: Say | None = None
) -> Ended:
    """Run ``job``; the worker's whole process group is gone afterwards, however it ended.

    Args:
        job: what to run.
        limits: after how long it is stopped.
        hertz: samples a second; 0 for none.
        say: is told what the worker does.
    """
    limits, say = limits or Limits(), say or (lambda text: None)
    with tempfile.TemporaryDirectory(prefix="vram-plan-run-") as folder:
        return _launched(job, Path(folder), limits, hertz, say)


def _launched(job: Job, folder: Path, limits: Limits, hertz: float, say: Say) -> Ended:
    (folder / "job.json").write_text(job.to_json(), encoding="utf-8")
    started = time.monotonic()
    with (folder / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "vram_plan.bench.runs.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watched = Watched(folder / "progress.jsonl")
        sampler = Sampler(worker.pid, folder, uuid=_gpu(job), hertz=hertz) if hertz else None
        try:
            stopped = _watch(worker, watched, limits, started, say)
        finally:
            _end_group(worker)
            samples = sampler.stop() if sampler else None
    watched.read()
    text = _tail(folder / "log")
    failure, result = _verdict(folder, worker.returncode, stopped, text)
    return Ended(
        result=result,
        failure=failure,
        stage=watched.stage,
        seconds=time.monotonic() - started,
        log=text,
        samples=samples,
    )


def _gpu(job: Job) -> str | None:
    """UUID of the GPU the run will take; empty for the first one where PyTorch cannot tell."""
    if job.device != "cuda":
        return None
    import torch

    if not torch.cuda.is_available():
        return ""
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


def _watch(
    worker: subprocess.Popen[bytes], watched: Watched, limits: Limits, started: float, say: Say
) -> str | None:
    """Wait for the end; the name of the limit where one was exceeded."""
    while worker.poll() is None:
        for line in watched.read():
            say(_words(line))
        stopped = limits.exceeded(watched, started)
        if stopped:
            return stopped
        time.sleep(_POLL_SECONDS)
    return None


def _words(line: dict[str, Any]) -> str:
    return f"step {line['number']}" if line["stage"] == "step" else str(line["stage"])


def _end_group(worker: subprocess.Popen[bytes]) -> None:
    """No process of the run is left: first asked to end, then killed."""
    for number, patience in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
        try:
            os.killpg(worker.pid, number)
        except ProcessLookupError:
            break
        try:
            worker.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    worker.wait()


def _verdict(
    folder: Path, code: int, stopped: str | None, log: str
) -> tuple[Failure | None, dict[str, Any] | None]:
    """The result file is the only truth; an exit code of 0 without one is a crash."""
    if stopped:
        outcome, _, limit = stopped.partition(":")
        return Failure(outcome=outcome, message=f"stopped by the {limit} limit"), None
    path = folder / "result.json"
    if not path.exists():
        return of_exit(code, log), None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        return Failure(outcome="crash", message=f"the result file is damaged: {error}"), None
    if "exception" in found:
        return of_exception(found["exception"], found["message"]), found
    return None, found


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LOG_BYTES))
        return file.read().decode("utf-8", errors="replace")
