"""Counts a run's steps: the first are watched for memory, the last are timed."""

import time
from collections.abc import Callable

import torch

from vram_plan.bench.engines.memory import CpuMemory, GpuMemory
from vram_plan.bench.engines.place import Place

__all__ = ["Stepper"]


class Stepper:
    """Stands beside every optimizer step, whoever takes it.

    Memory comes first, while the loop settles; once its steps are over nobody watches any more.

    Attributes:
        total: steps of the whole run.
        seconds: of every step.
    """

    def __init__(
        self,
        memory: CpuMemory | GpuMemory,
        place: Place,
        say: Callable[..., None],
        *,
        watched: int,
        timed: int,
    ) -> None:
        self.total = watched + timed
        self.seconds: list[float] = []
        self._memory, self._place, self._say = memory, place, say
        self._watched = watched
        self._started = 0.0

    @property
    def watches(self) -> bool:
        """Whether the step that runs or comes next is watched."""
        return len(self.seconds) < self._watched

    def before(self) -> None:
        """A step begins."""
        self._say("step", number=len(self.seconds))
        if self.watches:
            self._memory.begin()
        self._wait()
        self._started = time.perf_counter()

    def after(self) -> None:
        """The step has ended, on the device too."""
        self._wait()
        seconds = time.perf_counter() - self._started
        if self.watches:
            self._memory.end()
        self.seconds.append(seconds)
        if len(self.seconds) == self._watched:
            self._say("measure")
            self._memory.stop()

    def drive(self, take: Callable[[], None]) -> None:
        """Take every step of the run."""
        for _ in range(self.total):
            self.before()
            take()
            self.after()
        self._say("done")

    def _wait(self) -> None:
        if self._place.device == "cuda":
            torch.cuda.synchronize()
