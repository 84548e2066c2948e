"""FSDP 1 and 2: each block gathered before it runs, its gradients scattered when it is done.

``full-shard`` frees a block after its forward pass and gathers it again going back; ``grad-op``
keeps it; what is outside the blocks (the root) stays gathered either way. Hybrid sharding gathers
inside a machine and all-reduces the shards of the gradients over machines. Gathers run ahead on a
stream of their own and reductions beside the backward pass, so only the first gather and the last
reduction wait for nothing. torch 2.13.0
``torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py``, ``_fully_shard.py``
(``reshard_after_forward``), ``_runtime_utils.py``. Gradients travel in the compute dtype
(``reduce_dtype`` unset, as Accelerate does) after every micro-batch.
"""

from __future__ import annotations

from collections import Counter

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.fsdp_states import shard_ranks
from vram_plan.estimator.sharding.units import (
    Unit,
    gathered_bytes,
    padded,
    root_unit,
    unit_of,
)
from vram_plan.estimator.speed.links import Group, group_of
from vram_plan.estimator.speed.payload import collective, fullest_rank
from vram_plan.estimator.speed.transfer import Transfer


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """All-gathers, reduce-scatters and, with hybrid sharding, all-reduces."""
    ranks = shard_ranks(config)
    if config.shard_ranks == 1:
        return ()
    group = group_of(config, ranks, stride=config.tp)
    rank = fullest_rank(config)
    found = [*_gathers(config, rank, group), *_reductions(config, rank, group)]
    copies = config.shard_ranks // ranks
    if copies > 1:
        found.append(_replicas(config, rank, copies))
    return tuple(one for one in found if one.count)


def units(rank: Rank) -> tuple[Unit, list[tuple[Unit, int]]]:
    """The root, and the blocks with how many are alike, first to last."""
    scale = rank.passes.inventory.scale
    links = [link for link in rank.passes.links if link.segment.kind == "layer"]
    return root_unit(rank.passes.links, scale), [(unit_of(x, scale), x.count) for x in links]


def unit_bytes(config: TrainConfig, unit: Unit, ranks: int) -> float:
    """Bytes of a unit when gathered."""
    return float(unit.total(lambda param: gathered_bytes(config, param, ranks)))


def gradient_unit_bytes(unit: Unit, ranks: int) -> float:
    """Bytes of a unit's gradients, rows padded."""
    return float(unit.total(lambda p: padded(p, ranks) * p.itemsize, trainable=True))


def _gathers(config: TrainConfig, rank: Rank, group: Group) -> list[Transfer]:
    root, layers = units(rank)
    times, ranks = config.grad_accum, group.ranks
    blocks: Counter[float] = Counter()
    for unit, count in layers:
        blocks[unit_bytes(config, unit, ranks)] += count * times
    pieces = list(blocks.items())
    name = "all-gather of weights"
    first = [(unit_bytes(config, root, ranks), times)] if root.params else []
    found = [
        collective(f"{name} (first)", "all-gather", first, group),
        collective(f"{name} (forward)", "all-gather", pieces, group, overlaps="forward"),
    ]
    if config.fsdp != "grad-op":
        found.append(
            collective(f"{name} (backward)", "all-gather", pieces, group, overlaps="backward")
        )
    return found


def _reductions(config: TrainConfig, rank: Rank, group: Group) -> list[Transfer]:
    root, layers = units(rank)
    times, kind = config.grad_accum, "reduce-scatter"
    blocks: Counter[float] = Counter()
    for unit, count in layers:
        nbytes = gradient_unit_bytes(unit, group.ranks)
        if nbytes:
            blocks[nbytes] += count * times
    last = gradient_unit_bytes(root, group.ranks)
    return [
        collective(f"gradient {kind}", kind, list(blocks.items()), group, overlaps="backward"),
        collective(f"gradient {kind} (last)", kind, [(last, times)] if last else [], group),
    ]


def _replicas(config: TrainConfig, rank: Rank, copies: int) -> Transfer:
    """One all-reduce a block over the machines, of a rank's share of its gradients."""
    ranks = shard_ranks(config)
    over = group_of(config, copies, stride=config.tp * ranks)
    root, layers = units(rank)
    sizes: Counter[float] = Counter()
    for unit, count in [(root, 1), *layers]:
        sizes[gradient_unit_bytes(unit, ranks) / ranks] += count * config.grad_accum
    pieces = [(size, count) for size, count in sizes.items() if size]
    name = "all-reduce of gradient shards over machines"
    return collective(name, "all-reduce", pieces, over, overlaps="backward")
