"""What a rank holds of a unit that FSDP gathers at once, in bytes and in pieces, and its update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.optimizers import optimizer_states
from vram_plan.estimator.quantization import code_bytes, packed_bytes
from vram_plan.estimator.sharding.units import Unit, gathered_bytes, held_bytes
from vram_plan.estimator.storages import Storages
from vram_plan.estimator.tape import Param

__all__ = [
    "UnitSizes",
    "broadcast_buckets",
    "local_weights",
    "piece_of",
    "scale_bytes",
    "unit_sizes",
    "update",
    "whole_bytes",
]


BROADCAST_BYTES = 250 * 2**20
IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSizes:
    """Bytes of a unit.

    Attributes:
        learns: whether its flat weight has a gradient.
        whole: of its flat weight, gathered.
        held: of all shards of its flat weight, as they are held.
        added: of the shard of each adapter's gradient.
    """

    learns: bool
    whole: int
    held: int
    added: tuple[int, ...]


def unit_sizes(config: TrainConfig, unit: Unit, base: Unit, ranks: int) -> UnitSizes:
    """Sizes of a unit; ``base`` is the part of it that travels as one flat weight."""
    added = (param for param in unit.params if param.trainable and param.added)
    return UnitSizes(
        learns=base.learns,
        whole=whole_bytes(config, base),
        held=round(sum(_held(config, param) for param in base.params)),
        added=tuple(
            weight.numel * weight.itemsize for weight in local_weights(config, added, ranks)
        ),
    )


def _held(config: TrainConfig, param: Param) -> float:
    """Bytes of all shards of a weight; codes are held as they travel."""
    if param.packed:
        return gathered_bytes(config, param, 1)
    return param.numel * held_bytes(config, param)


def whole_bytes(config: TrainConfig, unit: Unit) -> int:
    """Of a flat weight, gathered."""
    return round(sum(gathered_bytes(config, param, 1) for param in unit.params))


def broadcast_buckets(config: TrainConfig, unit: Unit) -> list[int]:
    """Flat copies of a unit's weights on the way to the other ranks, at most two at a time.

    ``sync_module_states``: torch 2.13.0 ``torch/distributed/fsdp/_init_utils.py``
    ``_sync_module_params_and_buffers``, ``PARAM_BROADCAST_BUCKET_SIZE``; a bucket takes weights
    until it is full (``torch/csrc/distributed/c10d/comm.cpp`` ``broadcast_coalesced``).
    """
    found = [0]
    for param in unit.params:
        if found[-1] >= BROADCAST_BYTES:
            found.append(0)
        found[-1] += round(gathered_bytes(config, param, 1))
    return sorted(found)[-IN_FLIGHT:]


def local_weights(config: TrainConfig, params: Iterable[Param], ranks: int) -> Iterator[Weight]:
    """The first rank's part of a flat weight, cut where its weights begin."""
    params = list(params)
    for added in (False, True):
        chosen = [param for param in params if param.added == added]
        left = -(-sum(param.numel for param in chosen) // ranks)
        for param in chosen:
            if left > 0:
                yield piece_of(config, param, min(left, param.numel))
            left -= param.numel


def scale_bytes(config: TrainConfig, param: Param) -> int:
    """What a quantized weight has beside its codes."""
    rows, columns = param.shape[0], param.shape[1]
    kind, group = config.quantization, config.gptq_group_size
    whole = packed_bytes(kind, columns, rows, double=config.double_quant, group=group)
    return round(whole - code_bytes(kind, columns, rows, group=group))


def update(
    timeline: Storages, optimizer: str, states: list[Weight], shards: list[int], *, first: bool
) -> None:
    """The optimizer's step on a rank's weights; then the gradients' shards are dropped.

    Args:
        timeline: what becomes of the changes.
        optimizer: its name.
        states: the rank's parts of the weights that learn.
        shards: storages of their gradients; left empty.
        first: the states are made now.
    """
    found = [optimizer_states(optimizer, [weight]) for weight in states]
    if first:
        for one in found:
            for _ in range(2):
                timeline.take(one.nbytes // 2)
    steps = [one.step for one in found if one.step]
    if optimizer_states(optimizer, states).step == sum(steps):
        timeline.scratch(steps)
    else:
        for step in steps:
            timeline.scratch([step])
    timeline.give_all(shards)


def piece_of(config: TrainConfig, param: Param, numel: int) -> Weight:
    """The part of a weight that a rank updates, as it is held."""
    return Weight(
        name=param.name,
        numel=numel,
        itemsize=held_bytes(config, param),
        trainable=True,
        count=1,
        layered=True,
        packed=False,
        added=param.added,
        shape=(numel,),
    )
