"""FSDP1 (``FullyShardedDataParallel``): each block's weights as one flat weight, split evenly.

Wrapped as Accelerate does (``TRANSFORMER_BASED_WRAP``): a unit for each block, the root for the
rest, ``use_orig_params``, ``BACKWARD_PRE``; with adapters PEFT's policy wraps every adapter weight
by itself. The all-gather writes into the flat weight: no buffer beside it. A unit's gradients are
those of views of the flat weight, so at the end of its backward pass autograd copies them into a
flat one. torch 2.13.0 ``torch/distributed/fsdp/_flat_param.py``, ``_runtime_utils.py``; peft 0.21.2
``peft/utils/other.py`` ``fsdp_auto_wrap_policy``.
"""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.fsdp_states import flat_states, shard_ranks
from vram_plan.estimator.sharding.gathering import Beside, dress, neighbours, pause
from vram_plan.estimator.sharding.units import (
    Unit,
    gathered_bytes,
    held_bytes,
    root_unit,
    rounded,
    single_ends,
    unit_of,
)
from vram_plan.profiles.switches import (
    checkpoints_inside_units,
    mixes_units,
    reentrant_checkpoints,
)

FLAT = "torch 2.13.0 torch/distributed/fsdp/_flat_param.py"
RUNTIME = "torch 2.13.0 torch/distributed/fsdp/_runtime_utils.py"


def keeps_gradients(config: TrainConfig) -> bool:
    """A unit's gradients wait for one another until the flat one is made."""
    return True


def entries(rank: Rank) -> list[Entry]:
    """Flat shards of weights, gradients and optimizer states."""
    return flat_states(rank)


def links(rank: Rank) -> tuple[Link, ...]:
    """The chain with what is gathered and reduced beside every segment."""
    return Timeline(rank).links()


class Timeline:
    """Which gathered flat weights and flat gradients live beside each segment."""

    def __init__(self, rank: Rank) -> None:
        config = rank.config
        self.config = config
        self.ranks = shard_ranks(config)
        self.scale = rank.passes.inventory.scale
        self.chain = single_ends(rank.passes.links)
        self.root = _wrapped(root_unit(self.chain, self.scale))
        self.stays = config.fsdp == "grad-op"
        self.inside = checkpoints_inside_units(config.stack)
        reentrant = reentrant_checkpoints(config.stack) and not self.inside
        self.reentrant = config.checkpointing == "full" and reentrant
        self.mixes = mixes_units(config.stack)
        added = any(p.added for link in self.chain for p in link.cost.params)
        self.leaves = added and not self.mixes
        # Recorded without gradients, a reentrant checkpoint's unit is not known to be needed
        # before it runs again (_runtime_utils.py _get_handle_to_prefetch).
        self.fetches_ahead = not (self.stays or self.reentrant)
        self.fetches_late = self.fetches_ahead and self.leaves

    def links(self) -> tuple[Link, ...]:
        """The dressed chain; before each unit, the moment that flattens its gradients."""
        result = [self._flattening_root()]
        for link, previous, _ in neighbours(self.chain):
            if link.segment.kind == "layer":
                result += self._block(link, previous)
            elif link.segment.kind == "head":
                result.append(dress(link, self._head(previous)))
            else:
                root = (self._whole(self.root),)
                result.append(dress(link, Beside(forward=root, backward=root)))
        return tuple(result)

    def _block(self, link: Link, previous: Link | None) -> list[Link]:
        unit = self._unit(link)
        before = link if link.count > 1 else previous
        gathered = (self._whole(self.root), self._whole(unit))
        backward: tuple[Entry, ...] = gathered
        # With adapters the handle before this block's is that of its own last adapter.
        if before is not None and self.fetches_ahead and not self.leaves:
            backward = (*gathered, self._whole(self._unit(before), "ahead: the block before"))
        kept = self._gathered_bytes(unit) if self.stays else 0
        shards = self._shards_bytes(unit_of(link, self.scale)) + self.hooked_bytes(link, unit)
        beside = Beside(forward=gathered, backward=backward, kept=kept, gradients=shards)
        if link.count > 1:
            return [dress(link, beside)]
        if not unit.learns:
            return [*self._fetched(link, before, gathered), dress(link, beside)]
        # The shard is there only after this moment, so it is the pause that leaves it.
        flattening = Beside(backward=(*backward, *self._flat_gradients(unit)), gradients=shards)
        name = f"flattening the gradients of {link.segment.name}"
        dressed = dress(link, replace(beside, gradients=0))
        return [pause(name, "layer", link.cost.left, flattening), dressed]

    def _fetched(self, link: Link, before: Link | None, held: tuple[Entry, ...]) -> list[Link]:
        """The block's first adapter goes back: in forward order the block before precedes it.

        So that one is gathered while this one is still whole (``_prefetch_handle``).
        """
        if before is None or not self.fetches_late:
            return []
        ahead = self._whole(self._unit(before), "ahead: the block before")
        name = f"the first adapter of {link.segment.name}"
        return [pause(name, "layer", link.cost.left, Beside(backward=(*held, ahead)))]

    def hooked_bytes(self, link: Link, unit: Unit) -> int:
        """What a finished block of frozen weights keeps until the backward pass is over.

        FSDP reshards a unit without gradients in a hook on its inputs
        (``_register_post_backward_reshard_only_hook``), whose handle is removed at the very end.
        Under a reentrant checkpoint that input is a leaf: it and its gradient stay with the hook.
        The last block's gradient is the tensor that comes into the block before, counted there.
        """
        if unit.learns or not self.reentrant:
            return 0
        kept = rounded(link.cost.left.nbytes)
        last = [other for other in self.chain if other.segment.kind == "layer"][-1]
        return kept if link is last else 2 * kept

    def _head(self, previous: Link | None) -> Beside:
        root = self._whole(self.root)
        if previous is None or not self.fetches_ahead:
            return Beside(forward=(root,), backward=(root,))
        ahead = self._whole(self._unit(previous), "ahead: the last block")
        return Beside(forward=(root,), backward=(root, ahead))

    def _flattening_root(self) -> Link:
        """At the end of the backward pass: the flat gradient of what is outside the blocks."""
        held = (self._whole(self.root), self._flat(self.root)) if self.root.learns else ()
        left = replace(self.chain[0].cost.left, requires_grad=False)
        return pause("flattening the last gradients", "embedding", left, Beside(backward=held))

    def _unit(self, link: Link) -> Unit:
        return self.wrapped(unit_of(link, self.scale))

    def wrapped(self, unit: Unit) -> Unit:
        """The part of a unit that travels as one flat weight."""
        return unit if self.mixes else _wrapped(unit)

    def _gathered_bytes(self, unit: Unit) -> int:
        nbytes = unit.total(lambda p: gathered_bytes(self.config, p, 1))
        return rounded(-(-nbytes // self.ranks) * self.ranks)

    def _shards_bytes(self, unit: Unit) -> int:
        """Its gradient's shard, adapters included."""
        if self.mixes:
            return self._mixed_bytes(unit)
        if self.config.grad_accum > 1 or self.config.offload == "optimizer+params":
            return 0
        return unit.total(
            lambda p: p.numel * held_bytes(self.config, p) / self.ranks, trainable=True
        )

    def _mixed_bytes(self, unit: Unit) -> int:
        """The gradient of a flat weight that learns in parts is one of all of it.

        Under ``no_sync`` it stays whole until the last micro-batch of the step.
        """
        if not unit.learns:
            return 0
        return self._gathered_bytes(unit) // (1 if self.config.grad_accum > 1 else self.ranks)

    def _whole(self, unit: Unit, what: str = "") -> Entry:
        return Entry(
            component="temporaries",
            name=f"gathered flat weight of {what or unit.name}",
            bytes=self._gathered_bytes(unit),
            formula=f"{unit.total(lambda p: p.numel):,} elements in the compute dtype",
            source=RUNTIME,
        )

    def _flat(self, unit: Unit) -> Entry:
        return Entry(
            component="gradients",
            name=f"flat gradient of {unit.name}",
            bytes=self._gathered_bytes(unit),
            formula="a copy of the unit's gradients: cat of the views' (split_with_sizes_backward)",
            source=FLAT,
        )

    def _flat_gradients(self, unit: Unit) -> tuple[Entry, ...]:
        views = Entry(
            component="gradients",
            name=f"gradients of the weights in {unit.name}",
            bytes=unit.total(lambda p: rounded(p.numel * p.itemsize), trainable=not self.mixes),
            formula="one for every weight, until the flat one is made",
            source=FLAT,
        )
        return (views, self._flat(unit))


def _wrapped(unit: Unit) -> Unit:
    """The unit without adapters, which are units of their own."""
    return replace(unit, params=tuple(p for p in unit.params if not p.added))
