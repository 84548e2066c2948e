"""FSDP2 (``fully_shard``): every weight split by rows, gathered block by block.

The plain wrapping: ``fully_shard`` on each block, then on the model, so embeddings, last norm and
head form the root unit, which stays gathered from the forward pass on. torch 2.13.0
``torch/distributed/fsdp/_fully_shard``: ``_fsdp_param.py`` (shards), ``_fsdp_collectives.py``
(buffers), ``_fsdp_param_group.py`` (when they live). Gradients are reduced after every micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vram_plan.estimator.chain import Link, names_output
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.eight import gathered_itemsize
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.fsdp2_reduce import (
    COLLECTIVES,
    reduce_input,
    reduced,
    stays_reduced,
)
from vram_plan.estimator.sharding.fsdp_states import shard_ranks, sharded_states
from vram_plan.estimator.sharding.gathering import Beside, dress, neighbours, pause
from vram_plan.estimator.sharding.units import (
    Unit,
    gathered_bytes,
    held_bytes,
    padded,
    root_unit,
    rounded,
    single_ends,
    unit_of,
)
from vram_plan.estimator.tape import Param

GROUP = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py"


def keeps_gradients(config: TrainConfig) -> bool:
    """A block's gradients stay whole until its backward pass is done."""
    return True


def entries(rank: Rank) -> list[Entry]:
    """Shards of weights, gradients and optimizer states."""
    return sharded_states(rank)


def links(rank: Rank) -> tuple[Link, ...]:
    """The chain with what is gathered and reduced beside every segment."""
    return Timeline(rank).links()


class Timeline:
    """Which gathered weights and buffers live beside each segment."""

    def __init__(self, rank: Rank) -> None:
        config = rank.config
        self.config = config
        self.ranks = shard_ranks(config)
        self.scale = rank.passes.inventory.scale
        self.chain = single_ends(rank.passes.links)
        self.root = root_unit(self.chain, self.scale)
        self.stays = config.fsdp == "grad-op"
        self.accumulates = config.grad_accum > 1

    def links(self) -> tuple[Link, ...]:
        """The dressed chain; between segments, the moments that gather and reduce."""
        result = [*self._root_reduction()]
        for link, previous, following in neighbours(self.chain):
            if link.segment.kind == "layer":
                if previous is None or following is None:
                    result.append(self._gathering(link, previous))
                result.append(dress(link, self._block(link, previous, following)))
                result += self._gathering_ahead(result[-1], previous, link.cost.left.nbytes)
                if self._regathers(link, previous):
                    result.append(self._regathering(link, following))
            elif link.segment.kind == "head":
                result.append(dress(link, self._head(previous)))
                result += self._gathering_ahead(result[-1], previous, 0)
            else:
                result.append(dress(link, self._outside(link, previous, following)))
        return tuple(result)

    def _block(self, link: Link, previous: Link | None, following: Link | None) -> Beside:
        unit = self._unit(link)
        before = link if link.count > 1 else previous
        after = link if link.count > 1 else following
        own = () if self.stays else (self._whole(unit, "this block's weights"),)
        backward = [self._root(), *own]
        if before is not None and not self.stays:
            backward.append(self._all_gather(self._unit(before), "of the block before"))
        if after is not None:
            backward += self._reduce_input(self._unit(after), "of the block after")
        if self.stays:
            backward.append(self._whole(unit, "this block's weights"))
        return Beside(
            forward=(
                self._root(),
                self._whole(unit, "this block's weights"),
                self._all_gather(unit, "of this block"),
            ),
            backward=tuple(backward),
            # The weights of a repeated block (ALBERT) stay once, and so do their gradients.
            kept=self._gathered_bytes(unit) if self.stays and not link.segment.repeats else 0,
            gradients=0 if self.accumulates or link.segment.repeats else self._shards_bytes(unit),
            reduced=0 if link.segment.repeats else stays_reduced(self.config, unit, self.ranks),
        )

    def _head(self, previous: Link | None) -> Beside:
        if previous is None:
            return Beside(forward=(self._root(),), backward=(self._root(),))
        buffer = self._all_gather(self._unit(previous), "of the last block")
        backward = (self._root(),) if self.stays else (self._root(), buffer)
        return Beside(forward=(self._root(), buffer), backward=backward)

    def _outside(self, link: Link, previous: Link | None, following: Link | None) -> Beside:
        """An embedding, an encoder's last norm: a decoder's embedding has blocks before it."""
        whose = "of what is outside the blocks" if previous is None else "of the block before"
        before = self._all_gather(self.root if previous is None else self._unit(previous), whose)
        backward = [self._root()]
        if previous is not None and not self.stays:
            backward.append(before)
        if following is not None:
            unit = self._unit(following)
            backward += self._reduce_input(unit, "of the block after")
            if previous is None and not link.cost.left.requires_grad:
                # Nothing tells the block that it is through.
                backward.append(self._whole(unit, "the first block's weights"))
        return Beside(forward=(self._root(), before), backward=tuple(backward))

    def _gathering(self, link: Link, previous: Link | None) -> Link:
        """Before a block's forward pass: its weights are copied out beside two buffers.

        The variable ``prev_all_gather_state`` of ``wait_for_unshard`` holds the buffer of the
        unit before until the function returns.
        """
        unit = self._unit(link)
        before = self.root if previous is None else self._unit(previous)
        held = (
            self._root(),
            self._whole(unit, "this block's weights"),
            self._all_gather(unit, "of this block"),
            self._all_gather(before, "of the block before"),
        )
        beside = Beside(forward=held)
        made = pause(f"gathering {link.segment.name}", "layer", link.cost.left, beside)
        embedding = self.chain[0]
        if previous is None and (embedding.cost.keeps_output or names_output(embedding, link)):
            made = replace(made, cost=replace(made.cost, forward={}))  # what enters is counted
        return made

    def _regathers(self, link: Link, previous: Link | None) -> bool:
        """Whether copying its weights out going back may be fuller than what comes then.

        While a block goes back the buffer of the one before is there, its own no more.
        """
        if self.stays:
            return False
        before = link if link.count > 1 else previous
        own = self._gathered_bytes(self._unit(link))
        return before is None or self._gathered_bytes(self._unit(before)) < own

    def _regathering(self, link: Link, following: Link | None) -> Link:
        """Before a block goes back: its weights are copied out of their buffer."""
        unit = self._unit(link)
        held = [
            self._root(),
            self._whole(unit, "this block's weights"),
            self._all_gather(unit, "of this block"),
        ]
        if following is not None:
            held += self._reduce_input(self._unit(following), "of the block after")
        beside = Beside(backward=tuple(held))
        return pause(f"gathering {link.segment.name} again", "layer", link.cost.left, beside)

    def _gathering_ahead(self, link: Link, previous: Link | None, arrives: int) -> Iterator[Link]:
        """As a segment starts to go back: the shards of the block before it are copied to be sent.

        They are in a tensor of the compute dtype, or of the device, until the collective has begun
        (``_get_param_all_gather_inputs``). ``arrives``: bytes of the gradient that has come in.
        """
        before = link if link.count > 1 else previous
        if before is None or self.stays:
            return
        copied = self._unit(before).total(self._sent_bytes)
        if copied + arrives <= sum(link.cost.backward.values()):
            return
        sent = Entry(
            component="buffers",
            name="all-gather input of the block before",
            bytes=rounded(copied),
            formula=f"a rank's share in the compute dtype: {copied:,} bytes",
            source=COLLECTIVES,
        )
        name = f"sending {before.segment.name}"
        beside = Beside(backward=(*link.beside_backward, sent))
        yield pause(name, link.segment.kind, link.cost.left, beside)

    def _sent_bytes(self, p: Param) -> float:
        """Of a weight's copy that a rank sends; shards of that dtype are sent themselves."""
        away = self.config.offload == "optimizer+params"
        itemsize = gathered_itemsize(self.config, p)
        if not away and (p.packed or itemsize in {1, held_bytes(self.config, p)}):
            return 0
        return gathered_bytes(self.config, p, self.ranks) / self.ranks

    def _root_reduction(self) -> Iterator[Link]:
        """After the backward pass: what is outside the blocks is reduced (the last moment first).

        Whole gradients are copied into one buffer; behind it there are those of the shards.
        """
        whose, what = "of what is outside the blocks", "what is outside the blocks"
        left = replace(self.chain[0].cost.left, requires_grad=False)
        given = self._reduce_input(self.root, whose)
        outside = [link for link in self.chain if link.segment.kind != "layer"]
        whole = sum(link.cost.gradients * link.count for link in outside)
        shards = 0 if self.accumulates else self._shards_bytes(self.root)
        reduced = Beside(backward=(*given, *self._reduced(self.root, whose)))
        yield pause(f"shards of {what}", "embedding", left, reduced)
        copied = Beside(backward=tuple(given), gradients=shards - whole)
        yield pause(f"reducing {what}", "embedding", left, copied)

    def _unit(self, link: Link) -> Unit:
        return unit_of(link, self.scale)

    def _gathered_bytes(self, unit: Unit) -> int:
        def size(p: Param) -> float:
            return rounded(gathered_bytes(self.config, p, self.ranks))

        return unit.total(size)

    def _shards_bytes(self, unit: Unit) -> int:
        def size(p: Param) -> float:
            return padded(p, self.ranks) // self.ranks * held_bytes(self.config, p)

        return 0 if self.config.offload == "optimizer+params" else unit.total(size, trainable=True)

    def _root(self) -> Entry:
        return self._whole(self.root, "weights outside the blocks")

    def _whole(self, unit: Unit, what: str) -> Entry:
        return Entry(
            component="temporaries",
            name=f"gathered: {what}",
            bytes=self._gathered_bytes(unit),
            formula=f"{len(unit.params)} weights of {unit.name}, rows padded to a multiple of "
            f"{self.ranks}, in the compute dtype",
            source=GROUP,
        )

    def _all_gather(self, unit: Unit, whose: str) -> Entry:
        nbytes = unit.total(lambda p: gathered_bytes(self.config, p, self.ranks))
        return Entry(
            component="buffers",
            name=f"all-gather output {whose}",
            bytes=rounded(nbytes),
            formula=f"one buffer of {nbytes:,} bytes for {unit.name}",
            source=COLLECTIVES,
        )

    def _reduced(self, unit: Unit, whose: str) -> Iterator[Entry]:
        yield from reduced(self.config, unit, self.ranks, whose)

    def _reduce_input(self, unit: Unit, whose: str) -> list[Entry]:
        return [reduce_input(unit, self.ranks, whose)]
