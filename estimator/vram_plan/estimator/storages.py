"""Storages of a run as they come and go, and who holds them: written down, or served at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vram_plan.estimator.allocator import Change
from vram_plan.estimator.allocator.plain import (
    BITS,
    SMALL_UNITS,
    Op,
    PlainAllocator,
    units_of,
)

__all__ = ["Served", "ServedByPool", "Storages", "Stretch", "Timeline", "stretch_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Changes in a row of storages that nothing outside their segment holds.

    Attributes:
        changes: in their order.
        small: what the small pool is asked for, ``allocator.plain.Op``.
        large: what the large pool is asked for.
        peak: bytes alive at most beyond those at the beginning.
        net: bytes alive at the end beyond those at the beginning.
    """

    changes: tuple[Change, ...]
    small: tuple[Op, ...]
    large: tuple[Op, ...]
    peak: int
    net: int


def stretch_of(changes: Sequence[Change]) -> Stretch:
    """Sort changes by pool.

    What is freed again before its pool is asked for anything else leaves no trace but the segment
    that it may need: free blocks are the gaps between those in use, wherever it was.
    """
    ops: dict[bool, list[Op]] = {True: [], False: []}
    asked: dict[bool, int] = {True: 0, False: 0}
    born: dict[int, tuple[bool, int]] = {}
    alive = peak = 0
    for number, delta in changes:
        alive += delta
        if delta > 0:
            peak = max(peak, alive)
            units = units_of(delta)
            small = units <= SMALL_UNITS
            born[number] = small, len(ops[small])
            ops[small].append((number, units << BITS))
            asked[small] = len(ops[small])
            continue
        small = units_of(-delta) <= SMALL_UNITS
        place = born.get(number, (small, -1))[1]
        if place + 1 == asked[small] and place >= 0:
            ops[small][place] = number, -ops[small][place][1]
        else:
            ops[small].append((number, 0))
    return Stretch(
        changes=tuple(changes),
        small=tuple(ops[True]),
        large=tuple(ops[False]),
        peak=peak,
        net=alive,
    )


class Storages:
    """Storages, numbered as they come; one may have several holders."""

    __slots__ = ("_holders", "_sizes")

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._holders: list[int] = []

    def take(self, nbytes: int, stream: int = 0) -> int:
        """A new storage with one holder, made on a stream (0: the default one)."""
        number = len(self._sizes)
        self._sizes.append(nbytes)
        self._holders.append(1)
        if nbytes:
            self.made(number, nbytes, stream)
        return number

    def hold(self, number: int) -> int:
        """One holder more."""
        self._holders[number] += 1
        return number

    def give(self, number: int) -> None:
        """One holder less; the last one frees it."""
        self._holders[number] -= 1
        if not self._holders[number] and self._sizes[number]:
            self.freed(number, self._sizes[number])

    def give_all(self, numbers: list[int]) -> None:
        """Let go of several, and forget them."""
        for number in numbers:
            self.give(number)
        numbers.clear()

    def scratch(self, sizes: Iterable[int]) -> None:
        """Storages that live together for a moment."""
        self.give_all([self.take(nbytes) for nbytes in sizes])

    def play(self, stretch: Stretch, numbers: dict[int, Any]) -> None:
        """Changes of a segment's own storages; ``numbers`` has those that are there."""
        for number, delta in stretch.changes:
            if delta > 0:
                numbers[number] = self.take(delta)
            else:
                self.give(numbers[number])

    def made(self, number: int, nbytes: int, stream: int) -> None:
        """A storage of at least one byte is there."""
        raise NotImplementedError

    def freed(self, number: int, nbytes: int) -> None:
        """Its last holder is gone."""
        raise NotImplementedError


class Timeline(Storages):
    """The changes, written down."""

    __slots__ = ("changes", "streams")

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Change] = []
        self.streams: dict[int, int] = {}

    def made(self, number: int, nbytes: int, stream: int) -> None:
        """A line more."""
        if stream:
            self.streams[number] = stream
        self.changes.append((number, nbytes))

    def freed(self, number: int, nbytes: int) -> None:
        """A line more."""
        self.changes.append((number, -nbytes))


class Served(Storages):
    """The changes, served by an allocator as they come; nothing is written down.

    In the order of the run, as a device that is full wants it: what one pool gives back another
    gets.
    """

    __slots__ = ("_alive", "_allocator", "_homes", "_spots", "requested_peak")

    def __init__(self, allocator: PlainAllocator) -> None:
        super().__init__()
        self._allocator = allocator
        self._spots: dict[int, Any] = {}
        self._homes: dict[int, int] = {}
        self._alive = 0
        self.requested_peak = 0

    def made(self, number: int, nbytes: int, stream: int) -> None:
        """A request."""
        if stream:
            self._homes[number] = stream
        units = units_of(nbytes)
        self.ask(units <= SMALL_UNITS, stream, (number, units << BITS))
        self._alive += nbytes
        if self._alive > self.requested_peak:
            self.requested_peak = self._alive

    def freed(self, number: int, nbytes: int) -> None:
        """Back into its pool."""
        self.ask(units_of(nbytes) <= SMALL_UNITS, self._homes.get(number, 0), (number, 0))
        self._alive -= nbytes

    def ask(self, small: bool, stream: int, op: Op) -> None:  # called a million times
        """Ask a pool."""
        self._allocator.pool(small, stream).run((op,), self._spots)

    def close(self) -> None:
        """The run is over."""


class ServedByPool(Served):
    """The same, each pool by itself: a device without a limit.

    What a pool is asked for waits until the next stretch, and is then served at once.
    """

    __slots__ = ("_waiting",)

    def __init__(self, allocator: PlainAllocator) -> None:
        super().__init__(allocator)
        self._waiting: dict[tuple[bool, int], list[Op]] = {(True, 0): [], (False, 0): []}

    def ask(self, small: bool, stream: int, op: Op) -> None:
        """Note what the pool will be asked for."""
        try:
            self._waiting[small, stream].append(op)
        except KeyError:
            self._waiting[small, stream] = [op]

    def play(self, stretch: Stretch, numbers: dict[int, Any]) -> None:
        """A stretch at once: its storages have no number of the run, their blocks stand instead."""
        for small, ops in ((True, stretch.small), (False, stretch.large)):
            if ops:
                self._serve(small, 0)
                self._allocator.pool(small, 0).run(ops, numbers)
        self.requested_peak = max(self.requested_peak, self._alive + stretch.peak)
        self._alive += stretch.net

    def close(self) -> None:
        """What still waits is served."""
        for small, stream in self._waiting:
            self._serve(small, stream)

    def _serve(self, small: bool, stream: int) -> None:
        waiting = self._waiting[small, stream]
        if waiting:
            self._allocator.pool(small, stream).run(waiting, self._spots)
            waiting.clear()
