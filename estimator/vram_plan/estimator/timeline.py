"""A run as its allocator sees it: every storage of the loading and of two steps, in order.

The forward and backward passes are the segments' recordings, one after another; between two
segments the output of one is the input of the next, and the gradients likewise. Weights, optimizer
states and the temporaries of the step come one tensor at a time, as the libraries make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from vram_plan.estimator.allocator import Change
from vram_plan.estimator.chain import Link
from vram_plan.estimator.recording import Recording, record

__all__ = ["Passes", "Piece", "Timeline", "pieces_of"]


class Timeline:
    """Changes of storages, numbered as they come; a storage may have several holders."""

    __slots__ = ("_holders", "_sizes", "changes", "streams")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.streams: dict[int, int] = {}
        self._sizes: list[int] = []
        self._holders: list[int] = []

    def take(self, nbytes: int, stream: int = 0) -> int:
        """A new storage with one holder, made on a stream (0: the default one)."""
        number = len(self._sizes)
        if stream:
            self.streams[number] = stream
        self._sizes.append(nbytes)
        self._holders.append(1)
        if nbytes:
            self.changes.append((number, nbytes))
        return number

    def hold(self, number: int) -> int:
        """One holder more."""
        self._holders[number] += 1
        return number

    def give(self, number: int) -> None:
        """One holder less; the last one frees it."""
        self._holders[number] -= 1
        if not self._holders[number] and self._sizes[number]:
            self.changes.append((number, -self._sizes[number]))

    def give_all(self, numbers: list[int]) -> None:
        """Let go of several, and forget them."""
        for number in numbers:
            self.give(number)
        numbers.clear()

    def scratch(self, sizes: Iterable[int]) -> None:
        """Storages that live together for a moment."""
        self.give_all([self.take(nbytes) for nbytes in sizes])


class Piece:
    """One of the segments in a chain with the numbers of its storages in the whole run."""

    __slots__ = ("numbers", "recording")

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.numbers: dict[int, int] = {}


class BothWays(Protocol):
    """Segments in forward order that can be walked from the end."""

    def __reversed__(self) -> Iterator[Piece]:
        """From the last to the first."""


def pieces_of(links: Iterable[Link]) -> Iterator[Piece]:
    """Every segment of a chain that computes something, in forward order."""
    for link in links:
        if link.run is not None:
            recording = record(link.run)
            for _ in range(link.count):
                yield Piece(recording)


class Passes:
    """One micro-batch through the pieces, forward and back."""

    __slots__ = ("_attached", "_casts", "_passing", "gradients", "timeline")

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.gradients: list[int] = []
        self._casts: list[int] = []
        self._attached: list[int] = []
        self._passing: list[int] = []

    def forward(self, pieces: Iterable[Piece]) -> None:
        """The forward pass: what autocast has cast goes at its end."""
        left: int | None = None
        for piece in pieces:
            left = self._forward(piece, left)
        self.timeline.give_all(self._casts)
        self._attached += self._passing  # the loss
        self._passing.clear()

    def backward(self, pieces: BothWays) -> None:
        """The backward pass, the last piece first; weights' gradients are left."""
        back: int | None = None
        for piece in reversed(pieces):
            back = self._backward(piece, back)
        self.timeline.give_all(self._passing)
        self.timeline.give_all(self._attached)

    def _forward(self, piece: Piece, left: int | None) -> int | None:
        timeline, recording, numbers = self.timeline, piece.recording, piece.numbers
        numbers.clear()
        if recording.entered is not None and left is not None:
            numbers[recording.entered] = timeline.hold(left)
            timeline.give_all(self._passing)
        for number, delta in recording.forward:
            if delta > 0:
                if number not in numbers:
                    numbers[number] = timeline.take(delta)
            elif number == recording.left:
                self._passing.append(numbers[number])
            else:
                timeline.give(numbers[number])
        self._casts += [numbers[number] for number in recording.casts]
        if recording.entered is None and len(self._passing) > 1:
            # A stack begins anew: nobody reads what the last one left any more.
            timeline.give(self._passing.pop(0))
        if recording.offloaded and recording.entered is not None:
            timeline.give(numbers[recording.entered])
        return None if recording.left is None else numbers.get(recording.left)

    def _backward(self, piece: Piece, back: int | None) -> int | None:
        timeline, recording, numbers = self.timeline, piece.recording, piece.numbers
        if recording.offloaded and recording.entered is not None:
            numbers[recording.entered] = timeline.take(_size(recording, recording.entered))
        for number, delta in recording.backward:
            if delta > 0:
                if number == recording.grad_left and back is not None:
                    numbers[number] = timeline.hold(back)
                    timeline.give_all(self._passing)
                else:
                    numbers[number] = timeline.take(delta)
            elif number == recording.grad_entered:
                self._passing.append(numbers[number])
            elif number in recording.attached:
                self._attached.append(numbers[number])
            else:
                timeline.give(numbers[number])
        self.gradients += [numbers[number] for number in recording.gradients]
        return None if recording.grad_entered is None else numbers[recording.grad_entered]


def _size(recording: Recording, wanted: int) -> int:
    return next(delta for number, delta in recording.forward if number == wanted)
