"""Run one job in processes of its own, watch it, and say how it ended."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.device import gpu_uuids
from vram_plan.bench.runs.ending import ending, oom_kills
from vram_plan.bench.runs.failures import Failure
from vram_plan.bench.runs.group import (
    command,
    end_all,
    environment_of,
    first_machine,
    gpus_here,
)
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.progress import Watched
from vram_plan.bench.runs.sampler import HERTZ, Sampler
from vram_plan.bench.runs.worker import HOST_BYTES
from vram_plan.estimator.config import TrainConfig

__all__ = ["Ended", "Limits", "launch"]

Say = Callable[[str], None]
_POLL_SECONDS = 0.05
_LOG_BYTES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds after which a run is stopped.

    Attributes:
        load: from the start to the first step.
        first_step: the first step, in which kernels are chosen and compiled.
        heartbeat: silence afterwards.
        overall: the whole run.
        host_bytes: host memory that each of its processes may have; None for all there is.
    """

    load: float = 600.0
    first_step: float = 300.0
    heartbeat: float = 120.0
    overall: float = 1800.0
    host_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("load", "first_step", "heartbeat", "overall"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0 seconds")

    def environment(self) -> dict[str, str]:
        """What the processes of the run are told."""
        return {} if self.host_bytes is None else {HOST_BYTES: str(self.host_bytes)}

    def of_another_machine(self) -> Limits:
        """Where rank 0 is elsewhere nothing is heard of it: the overall limit alone counts."""
        return replace(self, load=self.overall, first_step=self.overall, heartbeat=self.overall)

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
        marks: the stages in their order, with the machine's monotonic clock.
    """

    result: dict[str, Any] | None
    failure: Failure | None
    stage: str
    seconds: float
    log: str
    samples: dict[str, Any] | None = None
    marks: tuple[dict[str, Any], ...] = ()


def launch(
    job: Job, *, limits: Limits | None = None, hertz: float = HERTZ, say: Say | None = None
) -> Ended:
    """Run ``job``; all of its processes are gone afterwards, however it ended.

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
    config = job.predict().config
    started, killed = time.monotonic(), oom_kills()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command(config, folder, virtual=job.virtual is not None),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment_of(job.device, limits.environment()),
        )
        watched = Watched(folder / "progress.jsonl")
        uuids = _gpus(job, config) if hertz else ()
        sampler = Sampler(process.pid, folder, uuids=uuids, hertz=hertz) if hertz else None
        try:
            limits = limits if first_machine(config) else limits.of_another_machine()
            stopped = _watch(process, watched, limits, started, say)
        finally:
            end_all(process, folder)
            samples = sampler.stop() if sampler else None
    watched.read()
    text = _tail(folder / "log")
    kills = oom_kills() - killed
    failure, result = ending(folder, process.returncode, text, stopped=stopped, kills=kills)
    return Ended(
        result=result,
        failure=failure,
        stage=watched.stage,
        seconds=time.monotonic() - started,
        log=text,
        samples=samples,
        marks=tuple(watched.lines),
    )


def _gpus(job: Job, config: TrainConfig) -> Sequence[str]:
    """UUIDs of the GPUs that the run will take here; empty names the first one of NVML's."""
    if job.device != "cuda":
        return ()
    return gpu_uuids()[: gpus_here(config, virtual=job.virtual is not None)] or ("",)


def _watch(
    process: subprocess.Popen[bytes], watched: Watched, limits: Limits, started: float, say: Say
) -> str | None:
    """Wait for the end; the name of the limit where one was exceeded."""
    while process.poll() is None:
        for line in watched.read():
            say(_words(line))
        stopped = limits.exceeded(watched, started)
        if stopped:
            return stopped
        time.sleep(_POLL_SECONDS)
    return None


def _words(line: dict[str, Any]) -> str:
    return f"step {line['number']}" if line["stage"] == "step" else str(line["stage"])


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LOG_BYTES))
        return file.read().decode("utf-8", errors="replace")
