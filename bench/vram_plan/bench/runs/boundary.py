"""``micro_batch = "boundary"``: the largest batch that the plan says fits, and the next one.

Both are run. The first shows whether the plan promises too much, the second whether it promises too
little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from vram_plan.bench.runs.job import Job

__all__ = ["BOUNDARY", "expanded", "largest_batch"]

BOUNDARY = "boundary"
_MOST = 4096


def expanded(jobs: Iterable[Job], gpu: str | None) -> Iterator[Job]:
    """The same jobs, those at the boundary as two.

    Args:
        jobs: of a suite.
        gpu: the catalogue's name of the GPU here, for jobs that name none.

    Raises:
        ValueError: if the boundary is asked for and there is no GPU whose it would be.
    """
    for job in jobs:
        if job.options.get("micro_batch") != BOUNDARY:
            yield job
            continue
        if gpu is None and "gpu" not in job.options:
            raise ValueError("micro_batch boundary: no GPU of the catalogue is here; give a number")
        largest = largest_batch(job, gpu)
        for size in (largest, largest + 1):
            if size:
                yield _sized(job, size)


def largest_batch(job: Job, gpu: str | None) -> int:
    """The largest micro-batch that certainly fits; 0 where not even one does.

    Memory never falls as the batch grows, so doubling and halving finds it.
    """
    low, high = 0, 1
    while high <= _MOST and _fits(job, high, gpu):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(job, middle, gpu) else (low, middle)
    return low


def _fits(job: Job, size: int, gpu: str | None) -> bool:
    return _sized(job, size).predict(gpu).fits[0].fits


def _sized(job: Job, size: int) -> Job:
    return replace(job, options={**job.options, "micro_batch": size})
