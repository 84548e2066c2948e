"""Shards of weights, gradients and optimizer states under FSDP2, on the device or on the host."""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import optimizer_states
from vram_plan.estimator.quantization import code_bytes
from vram_plan.estimator.sharding.base import (
    STEP_INSTANTS,
    Rank,
    clipping_entry,
    optimizer_entries,
    packed_entries,
)
from vram_plan.estimator.sharding.units import (
    held_bytes,
    padded,
    root_unit,
    rounded,
    shard,
    shards_packed,
    tensors_bytes,
    unit_of,
)
from vram_plan.estimator.tape import Param

PARAM = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_param.py _init_sharded_param"
FLAT = "torch 2.13.0 torch/distributed/fsdp/_flat_param.py FlatParamHandle.shard"
REDUCE = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py foreach_reduce"


def shard_ranks(config: TrainConfig) -> int:
    """Ranks that divide a weight: all, or those of one node with hybrid sharding."""
    if config.fsdp == "hybrid-shard":
        inside = config.gpus_per_node // (config.tp * config.pp)
        return max(1, min(config.shard_ranks, inside))
    return config.shard_ranks


def sharded_states(rank: Rank) -> list[Entry]:
    """One rank's rows of everything."""
    config, inventory = rank.config, rank.passes.inventory
    ranks = shard_ranks(config)
    shards = [shard(w, config, ranks) for w in inventory.weights if not w.packed]
    held = f"Σ ⌈rows / {ranks}⌉ · columns · bytes"
    found = _entries(rank, shards, ranks, PARAM, held)
    return [
        _in_buffers(entry, rank) if entry.component == "gradients" else entry for entry in found
    ]


def _in_buffers(entry: Entry, rank: Rank) -> Entry:
    """Gradients of shards are views of what the collective of their unit wrote.

    torch 2.13.0 ``_fsdp_collectives.py`` ``foreach_reduce``: ``torch.as_strided(reduce_output)``.
    """
    links, scale = rank.passes.links, rank.passes.inventory.scale
    ranks = shard_ranks(rank.config)

    def size(p: Param) -> float:
        return padded(p, ranks) // ranks * held_bytes(rank.config, p)

    blocks = [link for link in links if link.segment.kind == "layer" and not link.segment.repeats]
    total = rounded(root_unit(links, scale).total(size, trainable=True))
    for link in blocks:
        total += rounded(unit_of(link, scale).total(size, trainable=True)) * link.count
    neighbours = min(rank.config.gpus_per_node, rank.config.gpus) if entry.place == "host" else 1
    return replace(entry, bytes=total * neighbours)


def _entries(rank: Rank, shards: list[Weight], ranks: int, source: str, held: str) -> list[Entry]:
    config, inventory = rank.config, rank.passes.inventory
    learning = [w for w in shards if w.trainable]
    scale = inventory.scale
    found = [
        Entry(
            component="weights",
            name="shards of the weights",
            bytes=tensors_bytes(shards, scale),
            formula=f"{held} over {inventory.tensors():,} tensors "
            f"({inventory.numel():,} parameters)",
            source=source,
            state=True,
        ),
        _gradients(rank, learning, ranks),
        *optimizer_entries(optimizer_states(config.optimizer, learning, scale=scale), config),
        clipping_entry(rank),
    ]
    if config.offload == "optimizer+params":
        found = [_on_host(entry, config) for entry in found]
    return [*found, *_packed(rank, ranks)]


def _packed(rank: Rank, ranks: int) -> list[Entry]:
    """Quantized weights: 4-bit codes are sharded, their scales and all of GPTQ's are not.

    Scales hang on the weight as its ``quant_state``; GPTQ's tensors are buffers (FSDP shards
    parameters alone). What is not sharded stays on the device where shards wait on the host.
    """
    config, inventory = rank.config, rank.passes.inventory
    if config.quantization == "int8" and any(inventory.packed()):
        raise ValueError(
            f"--quantization int8 with --engine {config.engine}: FSDP cannot shard integer "
            "weights; choose nf4 or --engine ddp"
        )
    found = packed_entries(rank)
    if not shards_packed(config):
        return found
    kind, group = config.quantization, config.gptq_group_size
    whole = sum(
        code_bytes(kind, w.shape[1], w.shape[0], group=group) * w.count for w in inventory.packed()
    )
    codes = round(whole * inventory.scale)
    shard_of, rest = -(-codes // ranks), [replace(e, bytes=e.bytes - codes) for e in found]
    if config.offload == "optimizer+params":
        scales = [
            replace(e, name=f"{e.name}: scales", formula=f"{e.formula}; no codes") for e in rest
        ]
        host = [
            replace(
                e, name=f"{e.name}: codes", bytes=shard_of, formula=f"{codes:,} bytes / {ranks}"
            )
            for e in found
        ]
        return [*scales, *(_on_host(entry, config) for entry in host)]
    return [
        replace(e, bytes=e.bytes + shard_of, formula=f"{e.formula}; codes / {ranks}") for e in rest
    ]


def _gradients(rank: Rank, learning: list[Weight], ranks: int) -> Entry:
    return Entry(
        component="gradients",
        name="shards of the gradients",
        bytes=tensors_bytes(learning, rank.passes.inventory.scale),
        formula=f"one for every trainable shard: {rank.trainable:,} parameters / {ranks}",
        source=REDUCE,
        alive=frozenset() if rank.config.grad_accum > 1 else STEP_INSTANTS,
        state=True,
    )


def _on_host(entry: Entry, config: TrainConfig) -> Entry:
    """The same in the memory of the node that the rank shares with its neighbours."""
    if entry.place == "host":
        return entry
    neighbours = min(config.gpus_per_node, config.gpus)
    return replace(
        entry,
        place="host",
        bytes=entry.bytes * neighbours,
        formula=f"{neighbours} ranks · ({entry.formula})",
        source=f"{entry.source}; CPUOffloadPolicy",
    )


def flat_states(rank: Rank) -> list[Entry]:
    """One rank's part of every flat weight, of its gradient and of its optimizer states."""
    config, inventory = rank.config, rank.passes.inventory
    ranks = shard_ranks(config)
    pieces = [
        replace(
            weight,
            numel=-(-weight.numel // ranks),
            itemsize=held_bytes(config, weight),
            shape=(-(-weight.numel // ranks),),
        )
        for weight in inventory.weights
        if not weight.packed
    ]
    return _entries(rank, pieces, ranks, FLAT, f"Σ parameters / {ranks} · bytes")
