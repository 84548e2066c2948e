"""A run as its allocator sees it: every storage of the loading and of two steps, in order.

The forward and backward passes are the segments' recordings, one after another; between two
segments the output of one is the input of the next, and the gradients likewise. Weights, optimizer
states and the temporaries of the step come one tensor at a time, as the libraries make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from vram_plan.estimator.allocator import Change
from vram_plan.estimator.chain import Link
from vram_plan.estimator.recording import Recording, record
from vram_plan.estimator.storages import Storages, Stretch, stretch_of

__all__ = ["Passes", "Piece", "Script", "pieces_of"]


class Script:
    """A recording cut into stretches that concern nobody else, and the changes between them.

    Those are of storages that segments hand to each other or that outlive their pass.
    """

    __slots__ = ("backward", "forward", "recording")

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        shared = {recording.entered, recording.left, recording.grad_left, recording.grad_entered}
        shared |= recording.casts | recording.attached | set(recording.gradients)
        self.forward = tuple(_cut(recording.forward, shared))
        self.backward = tuple(_cut(recording.backward, shared))


def _cut(changes: Iterable[Change], shared: set[int | None]) -> Iterator[Stretch | Change]:
    own: list[Change] = []
    for change in changes:
        if change[0] not in shared:
            own.append(change)
            continue
        if own:
            yield stretch_of(own)
            own = []
        yield change
    if own:
        yield stretch_of(own)


class Piece:
    """One of the segments in a chain with the numbers of its storages in the whole run."""

    __slots__ = ("numbers", "recording", "script")

    def __init__(self, script: Script) -> None:
        self.script = script
        self.recording = script.recording
        self.numbers: dict[int, Any] = {}


class BothWays(Protocol):
    """Segments in forward order that can be walked from the end."""

    def __reversed__(self) -> Iterator[Piece]:
        """From the last to the first."""


def pieces_of(links: Iterable[Link]) -> Iterator[Piece]:
    """Every segment of a chain that computes something, in forward order."""
    for link in links:
        if link.run is not None:
            script = Script(record(link.run))
            for _ in range(link.count):
                yield Piece(script)


class Passes:
    """One micro-batch through the pieces, forward and back."""

    __slots__ = ("_attached", "_casts", "_passing", "gradients", "timeline")

    def __init__(self, timeline: Storages) -> None:
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
        self._enter(piece, left)
        for step in piece.script.forward:
            if isinstance(step, Stretch):
                timeline.play(step, numbers)
                continue
            number, delta = step
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

    def _enter(self, piece: Piece, left: int | None) -> None:
        """What the segment before has handed on is this one's input."""
        piece.numbers.clear()
        if piece.recording.entered is not None and left is not None:
            piece.numbers[piece.recording.entered] = self.timeline.hold(left)
            self.timeline.give_all(self._passing)

    def _backward(self, piece: Piece, back: int | None) -> int | None:
        timeline, recording, numbers = self.timeline, piece.recording, piece.numbers
        if recording.offloaded and recording.entered is not None:
            numbers[recording.entered] = timeline.take(_size(recording, recording.entered))
        for step in piece.script.backward:
            if isinstance(step, Stretch):
                timeline.play(step, numbers)
                continue
            number, delta = step
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
