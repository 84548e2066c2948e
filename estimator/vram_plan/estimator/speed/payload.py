"""What the fullest rank holds, as far as traffic is concerned: its weights, tokens and groups."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.pipeline import stages
from vram_plan.estimator.speed.collectives import seconds, sent_bytes
from vram_plan.estimator.speed.links import Group, group_of
from vram_plan.estimator.speed.transfer import Transfer
from vram_plan.estimator.tape import Param

__all__ = [
    "blocks",
    "collective",
    "data_group",
    "fullest_rank",
    "hidden_bytes",
    "rank_tokens",
    "trained_bytes",
]


def fullest_rank(config: TrainConfig) -> Rank:
    """The rank of the pipeline stage with the most weights; they do not depend on the data."""
    whole = _weights(config.gpus // config.cp, _OF_WEIGHTS(config))
    return Rank(config=config, passes=whole.passes, waiting=whole.waiting)


_DATA: dict[str, Any] = {
    "loss": "hf",
    "micro_batch": 1,
    "seq_len": 1,
    "source_len": 1,
    "cp": 1,
    "grad_accum": 1,
    "checkpointing": "none",
    "offload": "none",
}
"""What only activations depend on, as small as can be."""
_NAMES = tuple(
    one.name
    for one in fields(TrainConfig)
    if one.name not in {*_DATA, "gpus", "gpu", "node", "assumptions"}
)
_OF_WEIGHTS = attrgetter(*_NAMES)


@lru_cache(maxsize=1024)
def _weights(gpus: int, values: tuple[Any, ...]) -> Rank:
    config = TrainConfig(**_DATA, gpus=gpus, **dict(zip(_NAMES, values, strict=True)))
    passes = run_passes(config, keeps_gradients=True)
    if config.pp == 1:
        return Rank(config=config, passes=passes)
    return max(stages(config, passes), key=lambda rank: rank.passes.inventory.numel())


def blocks(rank: Rank, *, sparse: bool = False) -> int:
    """Transformer blocks of the rank, or those of them with experts."""
    return sum(
        link.count
        for link in rank.passes.links
        if link.segment.kind == "layer" and (not sparse or _has_experts(link))
    )


def _has_experts(link: Link) -> bool:
    return any("experts" in param.name for param in link.cost.params)


def rank_tokens(config: TrainConfig) -> int:
    """Tokens of one micro-batch on one rank; context ranks divide the sequence."""
    return config.micro_batch * -(-config.seq_len // config.cp)


def hidden_bytes(config: TrainConfig) -> int:
    """Bytes of one micro-batch's hidden states: tokens · hidden size · compute dtype."""
    return rank_tokens(config) * config.model.hidden_size * config.compute_bytes


def trained_bytes(rank: Rank, width: int, *, experts: bool | None = None) -> float:
    """Bytes of all weights that learn at ``width`` each; of experts or of the others alone."""
    inventory = rank.passes.inventory
    return sum(
        width * weight.numel * weight.count * (1.0 if weight.added else inventory.scale)
        for weight in inventory.select(trainable=True)
        if experts is None or ("experts" in weight.name) == experts
    )


def sizes_in_order(rank: Rank) -> list[tuple[Param, float]]:
    """Every weight that learns with its elements, in the order of the forward pass, tied once."""
    scale = rank.passes.inventory.scale
    found: list[tuple[Param, float]] = []
    seen: set[str] = set()
    for link in rank.passes.links:
        if link.segment.repeats:
            continue
        layered = link.segment.kind == "layer"
        for _ in range(link.count):
            for param in link.cost.params:
                if param.trainable and (layered or param.name not in seen):
                    found.append((param, param.numel * (1.0 if param.added else scale)))
                seen.add(param.name)
    return found


def data_group(config: TrainConfig) -> Group:
    """Ranks that hold the same weights: they share gradients, masters and moments."""
    return group_of(config, config.shard_ranks, stride=config.tp)


def collective(
    name: str,
    kind: str,
    pieces: list[tuple[float, int]],
    group: Group,
    *,
    overlaps: str | None = None,
    window: float = 1.0,
) -> Transfer:
    """Several collectives of one kind as one transfer; ``pieces`` are (bytes, how many times)."""
    return Transfer(
        name=name,
        part=f"communication: {kind}",
        bytes=sum(sent_bytes(kind, nbytes, group.ranks) * times for nbytes, times in pieces),
        seconds=sum(seconds(kind, nbytes, group) * times for nbytes, times in pieces),
        overlaps=overlaps,
        count=sum(times for _, times in pieces),
        window=window,
    )
