"""What every ZeRO stage counts with: one rank's weights, whole and divided by the ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Inventory, Weight
from vram_plan.estimator.optimizers import States, optimizer_states
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.zero_layout import Layout, Piece, largest_slices, layout_of, spans
from vram_plan.estimator.simulate import Bytes
from vram_plan.estimator.tape import ROUNDING_BYTES

REDUCTION = "gradient_reduction"
"""Instant: a bucket of gradients is reduced, during the backward pass or right after it."""

DS = "DeepSpeed 0.19.8 deepspeed/runtime"
FP32 = 4
FP64 = 8


class Shares:
    """One rank's weights as DeepSpeed holds them.

    Attributes:
        ranks: over which states are divided.
        width: bytes of a weight: DeepSpeed casts every weight to the compute dtype.
        trainable: parameters that learn.
        partition: of them, those of one rank.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.config: TrainConfig = rank.config
        self.inventory: Inventory = rank.passes.inventory
        self.links: tuple[Link, ...] = rank.passes.links
        self.ranks = rank.config.shard_ranks
        self.width = rank.config.compute_bytes
        self.trainable = rank.trainable
        self.partition = -(-self.trainable // self.ranks)

    @property
    def mixed(self) -> bool:
        """16-bit weights beside fp32 master weights."""
        return self.width < FP32

    @property
    def grad_width(self) -> int:
        """Bytes of an accumulated gradient (``data_types.grad_accum_dtype``)."""
        return self.config.zero_sizes.grad_accum_bytes or self.width

    @property
    def offloaded(self) -> bool:
        """The optimizer is on the host or on NVMe."""
        return self.config.offload in {"optimizer", "optimizer+params"}

    @property
    def padding(self) -> int:
        """Elements that align the flat weights to 2 · ranks."""
        return -self.trainable % (2 * self.ranks)

    @cached_property
    def layout(self) -> Layout:
        """The weights in their order."""
        code = 1.0 if self.config.quantization in {"int8", "gptq8"} else 0.5
        return layout_of(self.links, scale=self.inventory.scale, width=self.width, code=code)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Every weight in the order of the forward pass."""
        return self.layout.pieces

    @property
    def trained(self) -> tuple[Piece, ...]:
        """The weights that learn."""
        return self.layout.trained

    @property
    def largest(self) -> int:
        """Elements of the largest weight that learns."""
        return self.layout.largest

    @property
    def spans(self) -> dict[int, int]:
        """Partition → elements of all weights that lie in it, cut ones counted whole."""
        return spans(self.layout, max(1, self.partition))

    @cached_property
    def span(self) -> int:
        """The largest of the spans."""
        return max(self.partition, max(self.spans.values(), default=0))

    @cached_property
    def norms(self) -> int:
        """Bytes of the fullest rank's gradients and of the fp64 copy for a norm, under ZeRO 1, 2.

        A rank copies the part of a weight that is its own.
        """
        largest = largest_slices(self.layout, max(1, self.partition))
        return max((self.width * self.spans[p] + FP64 * n for p, n in largest.items()), default=0)

    @cached_property
    def saved(self) -> tuple[int, ...]:
        """Bytes of activations that one repetition of every segment keeps."""
        return tuple(sum(link.cost.saved.values()) for link in self.links)

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Bytes of activations that the segments before each one keep."""
        total, found = 0, []
        for link, saved in zip(self.links, self.saved, strict=True):
            found.append(total)
            total += link.count * saved
        return tuple(found)

    @cached_property
    def arriving(self) -> dict[tuple[int, str], Bytes]:
        """(link, weight) → bytes by component in its segment when its gradient arrives."""
        return {
            (index, param.name): {**param.alive}
            for index, link in enumerate(self.links)
            for param in link.cost.params
            if param.alive is not None
        }

    def states(self, elements: int) -> States:
        """Optimizer states over one flat fp32 tensor of ``elements``.

        A size class is nominal: its states are not rounded up as a tensor's are.
        """
        name = "adamw-fused" if self.config.optimizer == "adamw" else self.config.optimizer
        if self.inventory.scale == 1:
            return optimizer_states(name, [flat_weight(elements)], itemsize=FP32)
        whole = rounded(elements)
        found = optimizer_states(name, [flat_weight(whole)], itemsize=FP32)
        return replace(found, nbytes=round(found.nbytes * elements / max(1, whole)))


def flat_weight(elements: int) -> Weight:
    """A flat fp32 tensor as an optimizer sees it."""
    return Weight(
        name="flat",
        numel=elements,
        itemsize=FP32,
        trainable=True,
        count=1,
        layered=False,
        packed=False,
        added=True,
        shape=(elements,),
    )


def rounded(nbytes: float) -> int:
    """Bytes that the allocator takes."""
    return -(-int(nbytes) // ROUNDING_BYTES) * ROUNDING_BYTES


def share(numel: int, ranks: int) -> int:
    """Elements of one weight's partition under stage 3, padded."""
    return -(-numel // ranks)
