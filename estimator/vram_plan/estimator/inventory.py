"""Which weights a model has: counts of base and added, frozen and trainable parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vram_plan.estimator.chain import Link
from vram_plan.estimator.tape import ROUNDING_BYTES, Param


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """``count`` weights of one shape.

    Attributes:
        name: path inside its segment.
        numel: elements of one of them on this rank.
        itemsize: bytes per element as held (before quantization).
        trainable: a gradient and optimizer states exist for it.
        count: how many there are.
        layered: it belongs to a block (gathered and freed block by block when sharded).
        packed: it is quantized.
        added: it belongs to the training method, not to the base model.
        shape: its dimensions on this rank.
    """

    name: str
    numel: int
    itemsize: int
    trainable: bool
    count: int
    layered: bool
    packed: bool
    added: bool
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All weights on one rank, tied ones once.

    Attributes:
        weights: groups of equal weights.
        scale: nominal size of a size class over the parameters of its representative shape; 1
            for exact models. Base weights count ``scale`` times.
    """

    weights: tuple[Weight, ...]
    scale: float = 1.0

    def select(
        self, *, trainable: bool | None = None, added: bool | None = None
    ) -> Iterator[Weight]:
        """Weights that are (not) trainable and (not) added by the method."""
        for weight in self.weights:
            if trainable is not None and weight.trainable != trainable:
                continue
            if added is not None and weight.added != added:
                continue
            yield weight

    def numel(self, *, trainable: bool | None = None, added: bool | None = None) -> int:
        """Number of parameters."""
        total = 0.0
        for weight in self.select(trainable=trainable, added=added):
            total += weight.numel * weight.count * (1.0 if weight.added else self.scale)
        return round(total)

    def nbytes(self, *, trainable: bool | None = None) -> int:
        """Bytes as held, each tensor rounded up as the allocator does."""
        total = 0.0
        for weight in self.select(trainable=trainable):
            if weight.packed:
                continue
            each = -(-weight.numel * weight.itemsize // ROUNDING_BYTES) * ROUNDING_BYTES
            if self.scale != 1.0 and not weight.added:
                total += weight.numel * weight.itemsize * weight.count * self.scale
            else:
                total += each * weight.count
        return round(total)

    def flat_bytes(self, *, trainable: bool | None = None) -> int:
        """Bytes of all of them in one buffer, which is rounded up as a whole."""
        total = 0.0
        for weight in self.select(trainable=trainable):
            share = 1.0 if weight.added else self.scale
            total += weight.numel * weight.itemsize * weight.count * share
        return -(-round(total) // ROUNDING_BYTES) * ROUNDING_BYTES

    def tensors(self, *, trainable: bool | None = None) -> int:
        """Number of tensors."""
        return sum(weight.count for weight in self.select(trainable=trainable))

    def packed(self) -> Iterator[Weight]:
        """Quantized weights."""
        return (weight for weight in self.weights if weight.packed)


def take_inventory(links: tuple[Link, ...], nominal: int | None = None) -> Inventory:
    """List every weight of a chain; one that two segments share (a tied head) counts once."""
    seen: set[str] = set()
    weights: list[Weight] = []
    for link in links:
        layered = link.segment.kind == "layer"
        if link.segment.repeats:
            continue
        for param in link.cost.params:
            if not layered:
                if param.name in seen:
                    continue
                seen.add(param.name)
            weights.append(_weight(param, link.count, layered=layered))
    inventory = Inventory(weights=tuple(weights))
    if nominal is None:
        return inventory
    return Inventory(weights=inventory.weights, scale=nominal / inventory.numel(added=False))


def _weight(param: Param, count: int, *, layered: bool) -> Weight:
    return Weight(
        name=param.name,
        numel=param.numel,
        itemsize=param.itemsize,
        trainable=param.trainable,
        count=count,
        layered=layered,
        packed=param.packed,
        added=param.added,
        shape=param.shape,
    )
