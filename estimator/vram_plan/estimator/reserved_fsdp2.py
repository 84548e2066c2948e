"""What PyTorch's allocator reserves under FSDP2, whose streams have pools of their own.

All-gathers write into buffers made on the copy-in stream; each weight is copied out of them into a
tensor of its own on the default stream, which lives until its block is through. Gradients are
copied into one buffer on the default stream; the shards that come of it are made on the
reduce-scatter stream. A free block serves only the stream it was made for. Nothing is fitted.
Source: torch 2.13.0 ``torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py``
``wait_for_unshard``, ``post_backward``; ``_fsdp_collectives.py`` ``foreach_all_gather``,
``foreach_reduce``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.recording import record
from vram_plan.estimator.reserved_frame import ShardedRun
from vram_plan.estimator.reserved_units import piece_of
from vram_plan.estimator.sharding import fsdp2
from vram_plan.estimator.sharding.units import (
    Unit,
    gathered_bytes,
    held_bytes,
    padded,
    rounded,
    unit_of,
)
from vram_plan.estimator.storages import Storages
from vram_plan.estimator.tape import Param
from vram_plan.estimator.timeline import Piece, Script

__all__ = ["write_fully_sharded"]

COPY_IN, REDUCE = 1, 2
"""``all_gather_copy_in_stream`` and ``reduce_scatter_stream``; 0 is the default stream."""


def write_fully_sharded(config: TrainConfig, timeline: Storages) -> None:
    """Every change of the loading and of two steps on one rank.

    Args:
        config: every option, resolved; the engine is ``fsdp2`` and nothing is offloaded.
        timeline: what becomes of the changes.
    """
    _Run(config, timeline).write()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Bytes of the weights that are gathered and reduced together.

    Attributes:
        whole: of each weight, gathered.
        gathered: of the buffer that they are gathered into.
        gradients: of the buffer that their gradients are copied into; 0 where none learns.
        shards: of a rank's part of the gradients.
    """

    whole: tuple[int, ...]
    gathered: int
    gradients: int
    shards: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A segment in forward order; ``group``: what is gathered for it."""

    piece: Piece | None
    group: _Group | None


class _Run(ShardedRun):
    """Writes the timeline of one configuration."""

    def __init__(self, config: TrainConfig, timeline: Storages) -> None:
        super().__init__(config, timeline)
        self.layout = fsdp2.Timeline(self.rank)
        self.params: list[Param] = []
        self.root = self._group(self.layout.root)
        self.places = list(self._in_order())
        self.states = [self._local(param) for param in self.params if param.trainable]
        self.whole: dict[int, list[int]] = {}
        self.buffers: dict[int, int] = {}
        self.waiting: list[int] = []
        self.gathered: list[int] = []

    def load(self) -> None:
        """Shard by shard."""
        for param in self.params:
            self.timeline.take(self._shard_bytes(param))

    def _in_order(self) -> Iterator[_Place]:
        for link in self.layout.chain:
            layer = link.segment.kind == "layer"
            script = Script(record(link.run)) if link.run is not None else None
            for _ in range(link.count):
                group = self._group(unit_of(link, 1.0)) if layer else None
                yield _Place(Piece(script) if script else None, group)

    def _group(self, unit: Unit) -> _Group:
        config, ranks = self.config, self.layout.ranks
        self.params += unit.params
        learning = [p for p in unit.params if p.trainable]
        return _Group(
            whole=tuple(rounded(gathered_bytes(config, p, ranks)) for p in unit.params),
            gathered=round(sum(gathered_bytes(config, p, ranks) for p in unit.params)),
            gradients=sum(padded(p, ranks) * p.itemsize for p in learning),
            shards=sum(self._shard_bytes(p) for p in learning),
        )

    def _shard_bytes(self, param: Param) -> int:
        return (
            padded(param, self.layout.ranks) // self.layout.ranks * held_bytes(self.config, param)
        )

    def _local(self, param: Param) -> Weight:
        return piece_of(self.config, param, padded(param, self.layout.ranks) // self.layout.ranks)

    def gather_root(self) -> None:
        """Into a buffer, and out of it into its weights."""
        self.held = [self.timeline.take(self.root.gathered, COPY_IN)]
        self.gathered = [self.timeline.take(nbytes) for nbytes in self.root.whole]

    def forward(self) -> Iterator[Piece]:
        """Each segment with its weights; a buffer is let go when the next one is copied out."""
        for index, place in enumerate(self.places):
            if place.group is not None:
                before, self.held = self.held, [self._buffer(place.group)]
                self._copy_out(index, place.group)
                self.timeline.give_all(before)
            if place.piece is not None:
                yield place.piece
            if place.group is not None and not self.layout.stays:
                self.timeline.give_all(self.whole.pop(index))

    def backward(self) -> Iterator[Piece]:
        """The same from the end, the unit before being fetched ahead, gradients reduced."""
        blocks = [index for index, place in enumerate(self.places) if place.group is not None]
        self._fetch(blocks[-1] if blocks else None)
        for index in reversed(range(len(self.places))):
            place = self.places[index]
            if place.group is not None:
                self._fetch(index)
                if index in self.buffers:
                    self._copy_out(index, place.group)
                    self.timeline.give(self.buffers.pop(index))
                self._fetch(max((other for other in blocks if other < index), default=None))
            if place.piece is not None:
                yield place.piece
            if place.group is not None:
                self.timeline.give_all(self.whole.pop(index))
                self._reduce(place.group)

    def end_backward(self) -> None:
        """What is outside the blocks is reduced last."""
        self.timeline.give_all(self.gathered)
        self._reduce(self.root)
        self.timeline.give_all(self.waiting)

    def _fetch(self, index: int | None) -> None:
        if index is None or index in self.whole or index in self.buffers:
            return
        group = self.places[index].group
        assert group is not None
        self.buffers[index] = self._buffer(group)

    def _buffer(self, group: _Group) -> int:
        return self.timeline.take(group.gathered, COPY_IN)

    def _copy_out(self, index: int, group: _Group) -> None:
        self.whole[index] = [self.timeline.take(nbytes) for nbytes in group.whole]

    def _reduce(self, group: _Group) -> None:
        """Gradients go into one buffer, which waits until the next unit is reduced."""
        timeline = self.timeline
        timeline.give_all(self.waiting)
        if not group.gradients:
            return
        self.waiting.append(timeline.take(group.gradients))
        timeline.give_all(self.passes.gradients)
        shards = timeline.take(group.shards, REDUCE)
        if self.adds:  # to those of the micro-batch before
            timeline.give(shards)
        else:
            self.shards.append(shards)
