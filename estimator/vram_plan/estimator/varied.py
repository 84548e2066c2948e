"""Recordings of a chain at any sequence length, from those at three.

Sizes are polynomials of the length: linear, or quadratic where scores are written out, up to
rounding. Where the chain itself changes with the length (another kernel, more chunks) it is run
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vram_plan.estimator.allocator import Change
from vram_plan.estimator.chain import Link
from vram_plan.estimator.rank import Passes, beside_named
from vram_plan.estimator.recording import Recording, record
from vram_plan.estimator.timeline import Piece, Script

__all__ = ["AtLength", "Lengths"]

ENDS = 2
"""Blocks at either end of a run of equal ones that are replayed in full; of the others only what
outlives their pass, as the rest comes and goes in the places where their neighbour's did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLength:
    """One micro-batch of a length.

    Attributes:
        pieces: every segment, in forward order.
        inputs: bytes of token ids and labels.
        shared: bytes of tensors that every layer reads until the backward pass.
        passing: bytes of those that end with the forward pass.
    """

    pieces: tuple[Piece, ...]
    inputs: int
    shared: int
    passing: int


class Lengths:
    """A chain at every length up to a limit.

    Args:
        run: passes at a length.
        limit: the longest.
    """

    def __init__(self, run: Callable[[int], Passes], limit: int) -> None:
        self._run = run
        self._anchors = tuple(sorted({max(1, limit // 4), max(1, limit // 2), limit}))
        self._passes = [run(length) for length in self._anchors]
        self._alike = len(self._anchors) == 3 and _alike([p.links for p in self._passes])
        self._seen: dict[int, AtLength] = {}
        if self._alike:
            chains = [[record(link.run) for link in p.links if link.run] for p in self._passes]
            self._threes = list(zip(*chains, strict=True))

    def at(self, length: int) -> AtLength:
        """The micro-batch of a length."""
        if length not in self._seen:
            self._seen[length] = self._between(length) if self._alike else self._again(length)
        return self._seen[length]

    def _again(self, length: int) -> AtLength:
        passes = self._run(length)
        recordings = [record(link.run) for link in passes.links if link.run is not None]
        return _laid_out(
            recordings, passes.links, (passes.inputs, passes.shared, beside_named(passes))
        )

    def _between(self, length: int) -> AtLength:
        weights = _weights(self._anchors, length)
        scaled = [_scaled(threes, weights) for threes in self._threes]
        sizes = [(p.inputs, p.shared, beside_named(p)) for p in self._passes]
        inputs, shared, passing = (_mixed(three, weights) for three in zip(*sizes, strict=True))
        return _laid_out(scaled, self._passes[-1].links, (inputs, shared, passing))


def _laid_out(
    recordings: Sequence[Recording], links: Sequence[Link], sizes: tuple[int, int, int]
) -> AtLength:
    pieces: list[Piece] = []
    counts = [link.count for link in links if link.run is not None]
    for recording, count in zip(recordings, counts, strict=True):
        whole = Script(recording)
        lasting = Script(_lasting(recording)) if count > 2 * ENDS else whole
        for index in range(count):
            inner = ENDS <= index < count - ENDS
            pieces.append(Piece(lasting if inner else whole))
    inputs, shared, passing = sizes
    return AtLength(pieces=tuple(pieces), inputs=inputs, shared=shared, passing=passing)


def _lasting(recording: Recording) -> Recording:
    """Without the storages that are made and dropped within one pass of the segment."""
    bound = {recording.entered, recording.left, recording.grad_left, recording.grad_entered}
    bound |= recording.casts | recording.attached | set(recording.gradients)
    return replace(
        recording,
        forward=_outliving(recording.forward, bound),
        backward=_outliving(recording.backward, bound),
    )


def _outliving(changes: tuple[Change, ...], bound: set[int | None]) -> tuple[Change, ...]:
    made = {number for number, delta in changes if delta > 0}
    passing = {number for number, delta in changes if delta < 0 and number in made} - bound
    return tuple(change for change in changes if change[0] not in passing)


def _alike(chains: Sequence[tuple[Link, ...]]) -> bool:
    """Whether the chains run the same segments and make the same storages in the same order."""
    first = [link for link in chains[0] if link.run is not None]
    for chain in chains[1:]:
        links = [link for link in chain if link.run is not None]
        if [link.count for link in links] != [link.count for link in first]:
            return False
        for mine, theirs in zip(links, first, strict=True):
            if mine.run is None or theirs.run is None:
                return False
            if _shape(record(mine.run)) != _shape(record(theirs.run)):
                return False
    return True


def _shape(recording: Recording) -> tuple[object, ...]:
    """Everything of a recording but its sizes."""
    return (
        [(number, delta > 0) for number, delta in recording.forward],
        [(number, delta > 0) for number, delta in recording.backward],
        recording.casts,
        recording.gradients,
        recording.attached,
        (recording.entered, recording.left, recording.grad_left, recording.grad_entered),
    )


def _weights(anchors: Sequence[int], length: int) -> tuple[float, ...]:
    """Lagrange's: the polynomial through three values, at a length."""
    found = []
    for mine in anchors:
        weight = 1.0
        for other in anchors:
            if other != mine:
                weight *= (length - other) / (mine - other)
        found.append(weight)
    return tuple(found)


def _mixed(values: Sequence[int], weights: Sequence[float]) -> int:
    first, second, third = values
    mixed = first * weights[0] + second * weights[1] + third * weights[2]
    return max(round(mixed), 1 if third else 0)


def _scaled(recordings: Sequence[Recording], weights: Sequence[float]) -> Recording:
    sizes: dict[tuple[int, ...], int] = {}

    def between(lists: Sequence[Sequence[Change]]) -> Iterator[Change]:
        for three in zip(*lists, strict=True):
            number, last = three[2]
            values = (abs(three[0][1]), abs(three[1][1]), abs(last))
            size = sizes.get(values)
            if size is None:
                size = sizes[values] = _mixed(values, weights)
            yield number, -size if last < 0 else size

    return replace(
        recordings[-1],
        forward=tuple(between([one.forward for one in recordings])),
        backward=tuple(between([one.backward for one in recordings])),
    )
