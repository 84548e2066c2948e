"""Seconds of a function on a device: the quickest of several runs, others' work left out."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """Times functions on one device.

    On a CPU with one thread the clock counts the process' own time, so that other programs do not
    lengthen it; with more threads, and on a GPU, it is the wall's.
    """

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        alone = device == "cpu" and torch.get_num_threads() == 1
        self._now = time.process_time if alone else time.perf_counter
        self._wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else _nothing

    def seconds(
        self, function: Callable[[], object], *, least: int = 3, budget: float = 0.15
    ) -> float:
        """Of one call: the quickest of as many as the budget allows, and at least so many."""
        function()
        best, spent, runs = float("inf"), 0.0, 0
        while runs < least or (spent < budget and runs < 200):
            self._wait()
            started = self._now()
            function()
            self._wait()
            took = self._now() - started
            best, spent, runs = min(best, took), spent + took, runs + 1
        return best


def _nothing() -> None:
    """A CPU has finished when a function returns."""
