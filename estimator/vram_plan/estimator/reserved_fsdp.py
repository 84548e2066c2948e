"""What PyTorch's allocator reserves under FSDP1, whose streams have pools of their own.

A free block serves only the stream it was made for, so what each stream holds at most adds up:
weights are gathered on one, shards of gradients made on another, all else on the default one. What
a second stream reads is free again when that stream is through with it (``record_stream``), which
the next unit does not wait for; the rate limiter bounds that to one unit. Shards that wait on the
host come to the device on a stream of their own, and gradients' shards leave it. Nothing is fitted.
Source: torch 2.13.0 ``torch/distributed/fsdp/_runtime_utils.py`` ``_unshard``, ``_reduce_grad``,
``_reshard``; ``_flat_param.py`` ``_free_unsharded_flat_param``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.recording import record
from vram_plan.estimator.reserved_frame import ShardedRun
from vram_plan.estimator.reserved_units import (
    UnitSizes,
    broadcast_buckets,
    local_weights,
    scale_bytes,
    unit_sizes,
    whole_bytes,
)
from vram_plan.estimator.sharding import fsdp1
from vram_plan.estimator.sharding.units import Unit, gathered_bytes, held_bytes, unit_of
from vram_plan.estimator.storages import Storages
from vram_plan.estimator.timeline import Piece, Script
from vram_plan.profiles.switches import broadcasts_states

__all__ = ["write_sharded"]

UNSHARD, REDUCE, FETCH = 1, 2, 3
"""``unshard_stream``, ``post_backward_stream`` and ``pre_unshard_stream``; 0 is the default one."""


def write_sharded(config: TrainConfig, timeline: Storages) -> None:
    """Every change of the loading and of two steps on one rank.

    Args:
        config: every option, resolved; the engine is ``fsdp1``.
        timeline: what becomes of the changes.
    """
    _Run(config, timeline).write()


@dataclass(slots=True)
class _Place:
    """A segment in forward order; ``unit``: what is gathered for it; ``hooked``: kept bytes."""

    piece: Piece | None
    unit: Unit | None
    hooked: int = 0


class _Run(ShardedRun):
    """Writes the timeline of one configuration."""

    def __init__(self, config: TrainConfig, timeline: Storages) -> None:
        super().__init__(config, timeline)
        self.layout = fsdp1.Timeline(self.rank)
        self.places = list(self._in_order())
        self.gathered: dict[int, int] = {}
        self.waiting: list[int] = []
        self.flat: list[int] = []
        self.hooked: list[int] = []
        self.sizes: dict[int, UnitSizes] = {}
        self.root = 0

    def _in_order(self) -> Iterator[_Place]:
        for link in self.layout.chain:
            layer = link.segment.kind == "layer"
            unit = unit_of(link, 1.0) if layer else None
            hooked = self.layout.hooked_bytes(link, self.layout.wrapped(unit)) if unit else 0
            script = Script(record(link.run)) if link.run is not None else None
            for _ in range(link.count):
                yield _Place(Piece(script) if script else None, unit, hooked)

    def load(self) -> None:
        """Unit by unit; where weights wait on the host, nothing but scales stays."""
        blocks = [place.unit for place in self.places if place.unit is not None]
        units = (*blocks, self.layout.root)
        shards = [self._load_unit(unit) for unit in units]
        if self.on_host:
            return
        self._widen(shards)
        for unit in units:
            self.states += local_weights(
                self.config, (p for p in unit.params if p.trainable), self.layout.ranks
            )
        for weight in self.states:
            if weight.added:
                self.timeline.take(weight.numel * weight.itemsize)

    def _load_unit(self, unit: Unit) -> tuple[int, Unit]:
        """Its weights, a flat copy of them, and the part of it that stays."""
        timeline, base = self.timeline, self.layout.wrapped(unit)
        parts = [timeline.take(round(gathered_bytes(self.config, p, 1))) for p in base.params]
        if broadcasts_states(self.config.stack):
            timeline.scratch(broadcast_buckets(self.config, base))
        flat = timeline.take(whole_bytes(self.config, base))
        timeline.give_all(parts)
        shard = timeline.take(self._part(whole_bytes(self.config, base)))
        timeline.give(flat)
        for param in unit.params:
            if param.packed:
                timeline.take(scale_bytes(self.config, param))
        if self.on_host:
            timeline.give(shard)
        return shard, base

    def _widen(self, shards: list[tuple[int, Unit]]) -> None:
        """Accelerate's upcast: another tensor for each shard that is held wider than computed."""
        for number, unit in shards:
            plain = [p for p in unit.params if not p.packed]
            wide = sum(p.numel * held_bytes(self.config, p) for p in plain)
            if wide > sum(p.numel * p.itemsize for p in plain):
                self.timeline.take(self._part(wide))
                self.timeline.give(number)

    def gather_root(self) -> None:
        """As every unit is; it stays until the backward pass is over."""
        self.root = self._unshard(self._sizes(self.layout.root))

    def forward(self) -> Iterator[Piece]:
        """Each segment with its unit gathered; the last unit's memory is free one unit later."""
        for index, place in enumerate(self.places):
            self._gather(index)
            self._let_go()
            if place.piece is not None:
                yield place.piece
            if not self.layout.stays:
                self._reshard(index)

    def backward(self) -> Iterator[Piece]:
        """The same from the end, the unit before being fetched ahead, gradients reduced."""
        for index in reversed(range(len(self.places))):
            place = self.places[index]
            self._gather(index)
            alone = self.layout.leaves and place.unit is not None  # its last adapter comes before
            if index and self.layout.fetches_ahead and not alone:
                self._gather(index - 1)
            self._let_go()
            if place.piece is not None:
                self._keep(place, place.piece.recording.entered)
                yield place.piece
                self._keep(place, place.piece.recording.grad_entered)
            if alone and index and self.layout.fetches_late:
                self._gather(index - 1)
            if place.unit is not None:
                self._reduce(place.unit)
            self._reshard(index)

    def end_backward(self) -> None:
        """What is outside the blocks is reduced last."""
        self._let_go()
        if self.layout.root.learns:
            self._reduce(self.layout.root)
        self.timeline.give_all(self.flat)
        self.timeline.give_all(self.hooked)
        self.timeline.give(self.root)

    def _keep(self, place: _Place, number: int | None) -> None:
        """What a hook on a frozen unit's input holds until the end (``fsdp1.hooked_bytes``)."""
        if place.hooked and place.piece is not None and number in place.piece.numbers:
            self.hooked.append(self.timeline.hold(place.piece.numbers[number]))

    def _gather(self, index: int) -> None:
        unit = self.places[index].unit
        if unit is not None and index not in self.gathered:
            self.gathered[index] = self._unshard(self._sizes(unit))

    def _unshard(self, sizes: UnitSizes) -> int:
        """A flat weight, gathered from shards in the compute dtype on the device.

        Those that are held otherwise, or on the host, are copied on a stream of their own
        (``_flat_param.py`` ``pre_unshard``); the gather has read them one unit later. One that is
        both comes to the device as it is held first.
        """
        cast = sizes.held > sizes.whole
        if cast or self.on_host:
            self.waiting.append(self.timeline.take(self._part(sizes.whole), FETCH))
        if cast and self.on_host:
            self.timeline.give(self.timeline.take(self._part(sizes.held), FETCH))
        return self.timeline.take(sizes.whole, UNSHARD)

    def _reshard(self, index: int) -> None:
        if index in self.gathered:
            self.waiting.append(self.gathered.pop(index))

    def _let_go(self) -> None:
        self.timeline.give_all(self.waiting)

    def _reduce(self, unit: Unit) -> None:
        """Views' gradients become a flat one, of which a shard stays: see ``fsdp1``."""
        timeline, sizes = self.timeline, self._sizes(unit)
        if not unit.learns:
            return
        before, self.flat = self.flat, []
        if sizes.learns:
            self.flat.append(timeline.take(sizes.whole))
        timeline.give_all(self.passes.gradients)
        shards = [self._sharded(sizes)] if sizes.learns else []
        shards += [timeline.take(nbytes, REDUCE) for nbytes in sizes.added]
        if self.adds or self.on_host:  # to those of the micro-batch before; to the host
            timeline.give_all(shards)
        self.shards += shards
        timeline.give_all(before)

    def _sharded(self, sizes: UnitSizes) -> int:
        """Reduced in the compute dtype; then in that of the weights."""
        narrow = self._part(sizes.whole)
        reduced = self.timeline.take(narrow, REDUCE)
        wide = self._part(sizes.held)
        if wide <= narrow:
            return reduced
        cast = self.timeline.take(wide, REDUCE)
        self.timeline.give(reduced)
        return cast

    def _sizes(self, unit: Unit) -> UnitSizes:
        """Of a unit, which every step asks for."""
        found = self.sizes.get(id(unit))
        if found is None:
            base = self.layout.wrapped(unit)
            found = self.sizes[id(unit)] = unit_sizes(self.config, unit, base, self.layout.ranks)
        return found

    def _part(self, size: int) -> int:
        return -(-size // self.layout.ranks)
