"""Run the jobs of a suite one after the other; what is in the store is not run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vram_plan.bench.measurement import Measurement
from vram_plan.bench.runs.failures import Failure
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended, Limits, launch
from vram_plan.bench.runs.record import measurement_of
from vram_plan.bench.runs.sampler import HERTZ
from vram_plan.bench.runs.store import Store

__all__ = ["Cell", "shape_of", "sweep"]

_FINAL = frozenset({"ok", "oom"})
"""Outcomes that say something of the configuration; after others the run is made again."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One job and what became of it.

    Attributes:
        job: the job.
        measurement: what was seen; None when it was in the store already or is impossible.
        known: the outcome in the store.
        refused: why it cannot be run.
    """

    job: Job
    measurement: Measurement | None = None
    known: str | None = None
    refused: str | None = None


def sweep(
    jobs: Iterable[Job],
    store: Store,
    *,
    limits: Limits | None = None,
    hertz: float = HERTZ,
    say: Say | None = None,
) -> Iterator[Cell]:
    """Run what is missing; every run is in the store before the next one begins."""
    done = store.finished()
    for job in jobs:
        if done.get(job.key) in _FINAL:
            yield Cell(job=job, known=done[job.key])
            continue
        try:
            planned = job.predict()
        except ValueError as error:
            yield Cell(job=job, refused=str(error))
            continue
        ended = _ended(job, limits, hertz, say)
        measurement = measurement_of(job, planned, ended)
        store.add(measurement.to_document())
        yield Cell(job=job, measurement=measurement)


def _ended(job: Job, limits: Limits | None, hertz: float, say: Say | None) -> Ended:
    try:
        return launch(job, limits=limits, hertz=hertz, say=say)
    except OSError as error:
        message = f"the worker could not be started: {error}"
        failure = Failure(outcome="crash", message=message)
        return Ended(result=None, failure=failure, stage="start", seconds=0.0, log="")


def shape_of(job: Job) -> dict[str, Any]:
    """A job's options for a person, model first."""
    depth = {"layers": job.layers} if job.layers else {}
    return {"model": job.model, **depth, **job.options}
