"""Run the jobs of a suite one after the other; what is in the store is not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vram_plan.bench.measurement import Measurement
from vram_plan.bench.runs.device import named_gpu
from vram_plan.bench.runs.failures import Failure
from vram_plan.bench.runs.group import command, first_machine, gpus_here
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended, Limits, launch
from vram_plan.bench.runs.preflight import after, before
from vram_plan.bench.runs.record import measurement_of
from vram_plan.bench.runs.sampler import HERTZ
from vram_plan.bench.runs.store import Store

__all__ = ["Cell", "sweep", "title_of"]

_FINAL = frozenset({"ok", "oom"})
"""Outcomes that say something of the configuration; after others the run is made again."""

_ELSEWHERE = "elsewhere"
"""Of a rank whose job has its result on another machine."""
_SHOWN = ("layers", "ranks", "loop", "data", "padding", "weights")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One job and what became of it.

    Attributes:
        job: the job.
        measurement: what was seen; None when it was in the store already or is impossible.
        known: the outcome in the store; ``elsewhere`` where another machine stores it.
        refused: why it cannot be run.
    """

    job: Job
    measurement: Measurement | None = None
    known: str | None = None
    refused: str | None = None


def sweep(
    jobs: Sequence[Job],
    store: Store,
    *,
    limits: Limits | None = None,
    hertz: float = HERTZ,
    say: Say | None = None,
    again: bool = False,
) -> Iterator[Cell]:
    """Run what is missing, or all ``again``; every run is in the store before the next one begins.

    Raises:
        ValueError: if the store cannot be written, or the boundary of no GPU is asked for.
    """
    done, gpus = store.finished(), {device: named_gpu(device) for device in _devices(jobs)}
    for job in jobs:
        if not again and done.get(job.key) in _FINAL:
            yield Cell(job=job, known=done[job.key])
            continue
        try:
            planned = job.predict(gpus[job.device])
            command(planned.config, store.folder, virtual=job.virtual is not None)
        except ValueError as error:
            yield Cell(job=job, refused=str(error))
            continue
        count = gpus_here(planned.config, virtual=job.virtual is not None)
        found = before(job.device, store.folder, gpus=count)
        if found["refused"]:
            yield Cell(job=job, refused=f"not now: {found['refused']}")
            continue
        ended = _ended(job, limits, hertz, say)
        if not first_machine(planned.config):
            yield Cell(job=job, known=_ELSEWHERE)
            continue
        left = after(job.device, found, gpus=count)
        measurement = measurement_of(job, planned, ended, {"before": found, "after": left})
        store.add(measurement.to_document())
        yield Cell(job=job, measurement=measurement)


def _devices(jobs: Iterable[Job]) -> set[str]:
    return {job.device for job in jobs}


def _ended(job: Job, limits: Limits | None, hertz: float, say: Say | None) -> Ended:
    try:
        return launch(job, limits=limits, hertz=hertz, say=say)
    except OSError as error:
        message = f"the worker could not be started: {error}"
        failure = Failure(outcome="crash", message=message)
        return Ended(result=None, failure=failure, stage="start", seconds=0.0, log="")


def title_of(job: Job) -> str:
    """A job's options for a person, model first."""
    own = {name: value for name, value in job.said().items() if name in _SHOWN and value}
    shown = {"model": job.model, **own, **job.options}
    return " ".join(f"{name}={value}" for name, value in shown.items())
