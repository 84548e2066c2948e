"""FSDP2 (``fully_shard``): every weight split by rows, gathered block by block.

torch 2.13.0 ``torch/distributed/fsdp/_fully_shard``: ``_fsdp_param.py`` (shards),
``_fsdp_collectives.py`` (buffers), ``_fsdp_param_group.py`` (when they live).
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import optimizer_states
from vram_plan.estimator.sharding.base import (
    Rank,
    clipping_entry,
    optimizer_entries,
    packed_entries,
)
from vram_plan.estimator.sharding.units import (
    Unit,
    held_bytes,
    layer_units,
    padded,
    root_unit,
    rounded,
    shard,
    states_bytes,
)
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    CLIPPING,
    EMBEDDING_BACKWARD,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    OPTIMIZER_STEP,
    PASSES,
)

COLLECTIVES = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"
PARAM = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_param.py"
GROUP = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py"
_BACKWARD = frozenset({BACKWARD_LAST, BACKWARD_FIRST})


def keeps_gradients(config: TrainConfig) -> bool:
    """A block's gradients stay whole until its backward pass is done."""
    return True


def shard_ranks(config: TrainConfig) -> int:
    """Ranks that divide a weight: all, or those of one node with hybrid sharding."""
    if config.fsdp == "hybrid-shard":
        inside = config.gpus_per_node // (config.tp * config.pp)
        return max(1, min(config.shard_ranks, inside))
    return config.shard_ranks


def entries(rank: Rank) -> list[Entry]:
    """Shards, gathered units, gradients and the buffers of the collectives."""
    return [*_states(rank), *packed_entries(rank), *_gathered(rank), *_reduced(rank)]


def _states(rank: Rank) -> list[Entry]:
    config, inventory = rank.config, rank.passes.inventory
    ranks, scale = shard_ranks(config), inventory.scale
    shards = [shard(w, config, ranks) for w in inventory.weights if not w.packed]
    learning = [w for w in shards if w.trainable]
    gradients = states_bytes(learning, scale)
    states = optimizer_states(config.optimizer, learning, scale=scale)
    found = [
        Entry(
            component="weights",
            name="shards of the weights",
            bytes=states_bytes(shards, scale),
            formula=f"Σ ceil(rows / {ranks}) · columns · bytes over {inventory.tensors():,} tensors",
            source=PARAM,
            state=True,
        ),
        Entry(
            component="gradients",
            name="shards of the gradients",
            bytes=gradients,
            formula=f"one for every trainable shard, {rank.trainable:,} parameters / {ranks}",
            source=COLLECTIVES,
            alive=frozenset() if config.grad_accum > 1 else frozenset({CLIPPING, OPTIMIZER_STEP}),
            state=True,
        ),
        *optimizer_entries(states),
        clipping_entry(rank),
    ]
    return found


def _unit_bytes(rank: Rank, unit: Unit) -> int:
    """A unit's weights, gathered and padded, in the compute dtype."""
    ranks, scale = shard_ranks(rank.config), rank.passes.inventory.scale
    return round(unit.total(lambda p: rounded(padded(p, ranks) * p.itemsize)) * scale)


def _gathered(rank: Rank) -> list[Entry]:
    links, config = rank.passes.links, rank.config
    layers, root = layer_units(links), root_unit(links)
    sizes = [_unit_bytes(rank, unit) for unit in layers]
    largest, every = max(sizes), sum(u.count * s for u, s in zip(layers, sizes, strict=True))
    keeps = config.fsdp == "grad-op"
    found = [
        Entry(
            component="temporaries",
            name="gathered weights outside the blocks",
            bytes=_unit_bytes(rank, root),
            formula="embeddings, last norm and head, in the compute dtype",
            source=GROUP,
            alive=frozenset(PASSES),
        ),
        Entry(
            component="temporaries",
            name="gathered weights of the blocks" if keeps else "gathered weights of a block",
            bytes=every if keeps else largest,
            formula="all blocks" if keeps else "the largest block",
            source=GROUP,
            alive=frozenset(PASSES) if keeps else frozenset({FORWARD, *_BACKWARD}),
        ),
        Entry(
            component="buffers",
            name="all-gather output",
            bytes=largest,
            formula="the current block's in the forward pass, the next one's in the backward pass",
            source=COLLECTIVES,
            alive=frozenset({FORWARD, LOSS} if keeps else {FORWARD, LOSS, LOSS_BACKWARD, *_BACKWARD}),
        ),
    ]
    return found


def _reduced(rank: Rank) -> list[Entry]:
    layers, config = layer_units(rank.passes.links), rank.config
    ranks, scale = shard_ranks(config), rank.passes.inventory.scale

    def whole(unit: Unit) -> int:
        return round(
            unit.total(lambda p: padded(p, ranks) * p.itemsize, trainable=True) * scale
        )

    def sharded(unit: Unit) -> int:
        return round(
            unit.total(lambda p: padded(p, ranks) // ranks * held_bytes(config, p), trainable=True)
            * scale
        )

    every = sum(unit.count * sharded(unit) for unit in layers)
    last = sharded(layers[-1])
    return [
        Entry(
            component="buffers",
            name="reduce-scatter input of the last reduced block",
            bytes=max(whole(unit) for unit in layers),
            formula="its gradients, padded",
            source=COLLECTIVES,
            alive=frozenset({BACKWARD_FIRST, EMBEDDING_BACKWARD}),
        ),
        Entry(
            component="gradients",
            name="shards of the gradients of finished blocks",
            bytes=every - last,
            formula="all blocks but one",
            source=COLLECTIVES,
            alive=frozenset({BACKWARD_FIRST, EMBEDDING_BACKWARD} if config.grad_accum == 1 else {"-"}),
        ),
    ]
