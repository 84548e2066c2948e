"""Rows judged in several processes: what comes out is that of one, in the rows' order.

A file of a few rows is judged where it is read, as a process takes longer to start than such rows
take. Of a larger one every process gets some rows at a time, and no more are read ahead than keep
all of them busy. They are started afresh (``spawn``) on every system alike and share nothing with
the one that started them but a pipe, so they end when it does.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from vram_plan.profiles.measured import Invalid, Row
from vram_plan.reports.validate.run import Judged, Planner, judge_row

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["FEW", "judge_rows", "usable_cores"]

FEW = 64
"""Files of fewer rows are judged in this process."""
_TOGETHER = 8
"""Rows a process gets at a time: neighbours are alike and share much of their work."""
_AHEAD = 4
"""Batches for each process that may be under way or wait for slower ones before them."""

Read = Row | Invalid
Found = Judged | Invalid


def usable_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    counted = getattr(os, "process_cpu_count", None)  # Python 3.13
    if counted is not None:
        return counted() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def judge_rows(
    rows: Iterable[Read], *, jobs: int = 1, metrics: Collection[str] = ()
) -> Generator[Found, None, None]:
    """Judge rows as they come, and work out the figures that are asked for.

    Args:
        rows: of ``vram_plan.profiles.measured.read_rows``.
        jobs: processes at most; with 1 none is started.
        metrics: the columns that are compared; empty: all.

    Raises:
        ValueError: a process was ended from outside; the message names its rows.
    """
    source = iter(rows)
    first = list(islice(source, FEW)) if jobs > 1 else []
    every = chain(first, source)
    if len(first) < FEW:
        planner = Planner()
        for row in every:
            yield _found(row, planner, metrics)
        return
    workers = _Workers(jobs, metrics)
    try:
        yield from workers.judge(every)
    finally:
        workers.stop()


def _found(row: Read, planner: Planner, metrics: Collection[str]) -> Found:
    """What came of a row, its figures worked out."""
    if isinstance(row, Invalid):
        return row
    judged = judge_row(row, planner)
    wanted = [one for one in judged.comparisons if not metrics or one.metric in metrics]
    for one in wanted:
        _ = one.predicted  # some replay the allocator, which takes its time
    return replace(judged, comparisons=wanted)


@dataclass(slots=True)
class _Batch:
    """Rows given to a process; ``found``: what came back."""

    rows: list[Read]
    found: list[Found] | None = None


@dataclass(frozen=True, slots=True)
class _Fault:
    """A mistake of the project's own at one row, and where it was made."""

    row: str
    trace: str


class _Workers:
    """As many processes as there is work for, up to a number."""

    def __init__(self, jobs: int, metrics: Collection[str]) -> None:
        self._jobs = jobs
        self._metrics = tuple(metrics)
        self._workers: list[_Worker] = []

    def judge(self, rows: Iterable[Read]) -> Iterator[Found]:
        """Judge rows; what is done early waits for its turn."""
        batches = _batches(rows)
        waiting: deque[_Batch] = deque()
        while True:
            while len(waiting) < _AHEAD * self._jobs and (idle := self._idle()) is not None:
                batch = next(batches, None)
                if batch is None:
                    break
                idle.give(batch)
                waiting.append(batch)
            if not waiting:
                return
            self._receive()
            while waiting and waiting[0].found is not None:
                yield from waiting.popleft().found or ()

    def stop(self) -> None:
        """End every process."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def _idle(self) -> _Worker | None:
        for worker in self._workers:
            if worker.batch is None:
                return worker
        if len(self._workers) == self._jobs:
            return None
        with _interrupts_later():
            self._workers.append(_Worker(self._metrics))
        return self._workers[-1]

    def _receive(self) -> None:
        """Wait for a process to be through with its rows."""
        from multiprocessing.connection import wait  # few files need it

        busy = [worker for worker in self._workers if worker.batch is not None]
        ready = wait([worker.pipe for worker in busy])
        for worker in busy:
            if worker.pipe in ready:
                worker.take()


class _Worker:
    """A process with one batch at a time."""

    def __init__(self, metrics: tuple[str, ...]) -> None:
        from multiprocessing import get_context  # likewise

        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, metrics), daemon=True)
        self.process.start()
        theirs.close()
        self.batch: _Batch | None = None

    def give(self, batch: _Batch) -> None:
        """Hand over rows; the process waits for them."""
        self.batch = batch
        try:
            self.pipe.send(batch.rows)
        except OSError:
            raise self._ended() from None

    def take(self) -> None:
        """What came of them.

        Raises:
            ValueError: the process is gone.
            RuntimeError: a mistake of the project's own.
        """
        assert self.batch is not None
        try:
            answer: list[Found] | _Fault = self.pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(answer, _Fault):
            raise RuntimeError(f"row {answer.row}:\n{answer.trace}")
        self.batch.found, self.batch = answer, None

    def _ended(self) -> ValueError:
        self.process.join()
        rows = self.batch.rows if self.batch is not None else []
        names = [row.id for row in rows if isinstance(row, Row)] or ["none"]
        return ValueError(
            f"--jobs: a process was ended (exit code {self.process.exitcode}) between rows "
            f"{names[0]} and {names[-1]}; give --jobs 1 to predict them without it"
        )

    def stop(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _batches(rows: Iterable[Read]) -> Iterator[_Batch]:
    source = iter(rows)
    while batch := list(islice(source, _TOGETHER)):
        yield _Batch(batch)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits for a moment, so that what is started in it is deaf to it from the beginning.

    The parent alone answers it, and ends the others.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows: a process turns deaf when it runs
        yield
        return
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # started later, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, metrics: tuple[str, ...]) -> None:
    """The process: judge rows until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # as the command does: predictions leave next to no cycles
    planner = Planner()
    try:
        while True:
            pipe.send(_answer(pipe.recv(), planner, metrics))
    except (EOFError, OSError):
        return


def _answer(rows: list[Read], planner: Planner, metrics: tuple[str, ...]) -> list[Found] | _Fault:
    found = []
    for row in rows:
        try:
            found.append(_found(row, planner, metrics))
        except Exception:  # anything: the parent tells it with the row
            return _Fault(getattr(row, "id", ""), traceback.format_exc())
    return found
