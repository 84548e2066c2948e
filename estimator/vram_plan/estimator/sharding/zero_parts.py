"""What every ZeRO stage counts with: the weights in their order, and the share of one rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Inventory, Weight
from vram_plan.estimator.optimizers import States, optimizer_states
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.tape import ROUNDING_BYTES, Param

REDUCTION = "gradient_reduction"
"""Instant: a bucket of gradients is reduced, in the middle of the backward pass or right after it."""

DS = "DeepSpeed 0.19.8 deepspeed/runtime"
FP32 = 4
FP64 = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One weight where the forward pass first needs it.

    Attributes:
        numel: elements, those of a size class stretched to its nominal size.
        itemsize: bytes of one as DeepSpeed holds it (0.5 for 4-bit codes).
        trainable: a gradient is made for it.
        link: index of its segment in the chain.
        layer: which of the segment's repetitions.
        module: path of the module that owns it, inside its segment.
        key: the same for a weight that two segments share.
    """

    numel: int
    itemsize: float
    trainable: bool
    link: int
    layer: int
    module: str
    key: tuple[int, int, str]


class Shares:
    """One rank's weights, whole and divided by the number of ranks."""

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
    def padding(self) -> int:
        """Elements that align the flat weights to 2 · ranks."""
        return -self.trainable % (2 * self.ranks)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Every weight in the order of the forward pass, shared ones where they come first."""
        found: list[Piece] = []
        seen: set[tuple[int, int, str]] = set()
        for index, link in enumerate(self.links):
            if link.segment.repeats:
                continue
            for layer in range(link.count):
                for param in link.cost.params:
                    piece = self._piece(param, link, index, layer)
                    if piece.key not in seen:
                        seen.add(piece.key)
                        found.append(piece)
        return tuple(found)

    @cached_property
    def trained(self) -> tuple[Piece, ...]:
        """The weights that learn."""
        return tuple(piece for piece in self.pieces if piece.trainable)

    def _piece(self, param: Param, link: Link, index: int, layer: int) -> Piece:
        scale = 1.0 if param.added else self.inventory.scale
        layered = link.segment.kind == "layer"
        itemsize: float = self.width
        if param.packed:
            itemsize = 1.0 if self.config.quantization == "int8" else 0.5
        return Piece(
            numel=round(param.numel * scale),
            itemsize=itemsize,
            trainable=param.trainable,
            link=index,
            layer=layer,
            module=param.name.rpartition(".")[0],
            key=(index, layer, param.name) if layered else (-1, -1, param.name),
        )

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Bytes of activations that the segments before each one keep."""
        total, found = 0, []
        for link in self.links:
            found.append(total)
            total += link.count * sum(link.cost.saved.values())
        return tuple(found)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest weight that learns."""
        return max((piece.numel for piece in self.trained), default=0)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each trained weight begins in the flat buffer, and the end."""
        total, found = 0, [0]
        for piece in self.trained:
            total += piece.numel
            found.append(total)
        return tuple(found)

    @cached_property
    def spans(self) -> dict[int, int]:
        """Partition → elements of all weights that lie in it, cut ones counted whole."""
        size = max(1, self.partition)
        firsts: dict[int, int] = {}
        lasts: dict[int, int] = {}
        for begin, end in pairwise(self.offsets):
            if end > begin:
                for part in range(begin // size, (end - 1) // size + 1):
                    firsts.setdefault(part, begin)
                    lasts[part] = end
        return {part: lasts[part] - begin for part, begin in firsts.items()}

    @cached_property
    def span(self) -> int:
        """The largest of the spans."""
        return max(self.partition, max(self.spans.values(), default=0))

    @cached_property
    def largest_slice(self) -> int:
        """Elements of the largest piece of a weight inside one partition."""
        return min(self.largest, self.partition)

    def states(self, elements: int) -> States:
        """Optimizer states over flat fp32 tensors of ``elements`` in all."""
        name = {"adamw": "adamw-fused"}.get(self.config.optimizer, self.config.optimizer)
        return optimizer_states(name, [flat_weight(elements)], itemsize=FP32)


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
