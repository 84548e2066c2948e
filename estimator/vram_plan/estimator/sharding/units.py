"""What is gathered, freed and reduced at once: each block, and everything outside the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.choices import BYTES
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.tape import ROUNDING_BYTES, Param


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Weights that travel together.

    Attributes:
        name: module path.
        params: its weights on this rank before sharding.
        count: how many units are like it.
    """

    name: str
    params: tuple[Param, ...]
    count: int = 1

    @property
    def trainable(self) -> tuple[Param, ...]:
        """Those with a gradient."""
        return tuple(p for p in self.params if p.trainable)

    def total(self, size: Callable[[Param], int], *, trainable: bool | None = None) -> int:
        """Σ ``size`` over one unit's unquantized weights."""
        return sum(
            size(p)
            for p in self.params
            if not p.packed and (trainable is None or p.trainable == trainable)
        )


def layer_units(links: tuple[Link, ...]) -> list[Unit]:
    """One unit for every block, equal ones counted."""
    return [
        Unit(name=link.segment.name, params=link.cost.params, count=link.count)
        for link in links
        if link.segment.kind == "layer" and not link.segment.repeats
    ]


def root_unit(links: tuple[Link, ...]) -> Unit:
    """Everything outside the blocks, tied weights once."""
    found: dict[str, Param] = {}
    for link in links:
        if link.segment.kind != "layer" and not link.segment.repeats:
            for param in link.cost.params:
                found.setdefault(param.name, param)
    return Unit(name="root", params=tuple(found.values()))


def held_bytes(config: TrainConfig, param: Param | Weight) -> int:
    """Bytes per element of a weight as its shard is held, before any cast for compute."""
    if param.added:
        return BYTES[config.adapter_dtype]
    return config.weights_bytes


def padded(param: Param, ranks: int) -> int:
    """Elements of a weight after padding its first dimension to a multiple of ``ranks``."""
    rows = param.shape[0] if param.shape else param.numel
    return param.numel // max(rows, 1) * (-(-rows // ranks) * ranks)


def rounded(nbytes: float) -> int:
    """Rounded up to the allocator's blocks."""
    return int(-(-nbytes // ROUNDING_BYTES) * ROUNDING_BYTES)


def shard(weight: Weight, config: TrainConfig, ranks: int) -> Weight:
    """One rank's rows of a weight, padding included, in the dtype shards are held in."""
    rows = weight.shape[0] if weight.shape else weight.numel
    held = -(-rows // ranks)
    return replace(
        weight,
        numel=weight.numel // max(rows, 1) * held,
        itemsize=held_bytes(config, weight),
        shape=(held, *weight.shape[1:]),
    )


def states_bytes(weights: Iterable[Weight], scale: float, *, itemsize: int = 0) -> int:
    """Bytes of a tensor for each weight: rounded as the allocator does, scaled for size classes."""
    total = 0.0
    for weight in weights:
        each = weight.numel * (itemsize or weight.itemsize)
        if scale != 1.0 and not weight.added:
            total += each * weight.count * scale
        else:
            total += rounded(each) * weight.count
    return round(total)
