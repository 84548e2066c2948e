"""The sweep: places run in worker processes, each with a time limit; results in a JSON Lines file.

A worker that hangs or dies is replaced and its case counts as an error, so one bad configuration
does not end the sweep. A file that is there already is continued.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from vram_plan.bench.proof.case import Result
from vram_plan.bench.proof.sample import Slot

__all__ = ["read_results", "sweep", "write_results"]

TIMEOUT_SECONDS = 600.0
"""For one place, all its draws included."""
_STARTING_SECONDS = 300.0
"""More for the first place of a worker, which imports the libraries."""
_TOGETHER = 20
"""DeepSpeed's places in one go."""
Batch = tuple[Slot, ...]


def sweep(
    slots: Iterable[Slot],
    *,
    jobs: int = 1,
    output: Path | None = None,
    progress: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Run every place that ``output`` does not have yet; all results in the places' order.

    Args:
        slots: places of the sample.
        jobs: worker processes.
        output: a JSON Lines file to append to, or None to keep results in memory alone.
        progress: called with the number of finished places and the last result.
    """
    wanted = list(slots)
    done = {r.number: r for r in read_results(output, wanted)} if output is not None else {}
    waiting = list(_batches([slot for slot in wanted if slot.number not in done]))
    for result in _work(waiting, min(jobs, max(1, len(waiting)))):
        done[result.number] = result
        if output is not None:
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result.as_row()) + "\n")
        if progress is not None:
            progress(len(done), result)
    return [done[slot.number] for slot in wanted]


def _batches(waiting: list[Slot]) -> Iterator[Batch]:
    """Every place for itself; DeepSpeed's, whose every start imports it, many at a time."""
    zero: list[Slot] = []
    for slot in waiting:
        if slot.sharding != "deepspeed":
            yield (slot,)
            continue
        zero.append(slot)
        if len(zero) == _TOGETHER:
            yield tuple(zero)
            zero = []
    if zero:
        yield tuple(zero)


def read_results(path: Path, slots: Iterable[Slot]) -> list[Result]:
    """Results of these places that a file holds already.

    Raises:
        ValueError: if the file is another sample's.
    """
    if not path.exists():
        return []
    cells = {slot.number: (slot.stratum, slot.sharding, slot.size) for slot in slots}
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        result = Result(**json.loads(line))
        cell = f"{result.family} {result.method} {result.precision}"
        if cells.get(result.number) != (cell, result.sharding, result.size):
            raise ValueError(f"{path}: holds another sample; give another --output or --seed")
        found.append(result)
    return found


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Replace a file of results, all at once."""
    fresh = path.with_suffix(path.suffix + ".new")
    lines = [json.dumps(result.as_row()) + "\n" for result in results]
    fresh.write_text("".join(lines), encoding="utf-8")
    fresh.replace(path)


class _Worker:
    """A process with one place at a time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.slots: Batch = ()
        self.deadline = 0.0
        self.fresh = True

    def give(self, slots: Batch) -> None:
        """Start one place, or some."""
        limit = (_STARTING_SECONDS if self.fresh else 0.0) + TIMEOUT_SECONDS * len(slots)
        self.slots, self.deadline, self.fresh = slots, time.monotonic() + limit, False
        self.pipe.send(slots)

    def take(self) -> list[Result] | None:
        """The results, None while there are none; errors where the process is gone or late."""
        try:
            if self.pipe.poll():
                answer: list[Result] = self.pipe.recv()
                return answer
        except (EOFError, OSError):
            return [_failed(slot, "the worker ended") for slot in self.slots]
        if time.monotonic() > self.deadline:
            return [_failed(slot, "timeout") for slot in self.slots]
        return None

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(waiting: list[Batch], jobs: int) -> Iterator[Result]:
    """Results as they come."""
    queue = waiting[::-1]
    workers: list[_Worker] = []
    try:
        while queue or workers:
            while queue and len(workers) < jobs:
                workers.append(_Worker())
                workers[-1].give(queue.pop())
            wait([worker.pipe for worker in workers], timeout=1.0)
            for worker in list(workers):
                results = worker.take()
                if results is None:
                    continue
                yield from results
                if any(result.outcome == "error" for result in results) or not queue:
                    worker.stop()
                    workers.remove(worker)
                else:
                    worker.give(queue.pop())
    finally:
        for worker in workers:
            worker.stop()


def _failed(slot: Slot, message: str) -> Result:
    return Result(
        number=slot.number,
        family=slot.family,
        method=slot.method,
        precision=slot.precision,
        sharding=slot.sharding,
        size=slot.size,
        outcome="error",
        message=message,
    )


def _serve(pipe: Connection) -> None:
    """The worker: run places until the pipe closes."""
    _be_quiet()
    from vram_plan.bench.proof.case import run_slot
    from vram_plan.bench.proof.zero import run_zero

    while True:
        try:
            slots: Batch = pipe.recv()
        except EOFError:
            return
        together = slots[0].sharding == "deepspeed"
        try:
            results = run_zero(slots) if together else [run_slot(slots[0])]
        except Exception as error:  # a library's failure is a result
            message = f"{type(error).__name__}: {str(error)[:500]}"
            results = [_failed(slot, message) for slot in slots]
        pipe.send(results)


def _be_quiet() -> None:
    """One thread each; what libraries print on the way is not of interest here."""
    import warnings

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
