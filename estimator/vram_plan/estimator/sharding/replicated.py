"""Whole states on every rank: one process (torch) and DistributedDataParallel (ddp)."""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.methods.saved import originals
from vram_plan.estimator.optimizers import optimizer_states
from vram_plan.estimator.sharding.base import (
    Rank,
    clipping_entry,
    gradient_entries,
    optimizer_entries,
    weights_entries,
)
from vram_plan.estimator.sharding.in_backward import update_entries

DDP_SOURCE = "torch 2.13.0 torch/csrc/distributed/c10d/reducer.cpp initialize_buckets"


def keeps_gradients(config: TrainConfig) -> bool:
    """Gradients stay where autograd puts them, unless they are added to earlier ones."""
    return config.grad_accum == 1 and not config.optimizer_in_backward


def entries(rank: Rank) -> list[Entry]:
    """Weights, gradients and optimizer states, unsharded; DDP's buckets beside them."""
    config, inventory = rank.config, rank.passes.inventory
    states = optimizer_states(config.optimizer, inventory.weights, scale=inventory.scale)
    held = [*weights_entries(rank), *originals(rank)]
    if config.optimizer_in_backward:
        return [*held, *update_entries(rank, states)]
    found = [
        *held,
        *gradient_entries(rank),
        *optimizer_entries(states),
        clipping_entry(rank),
    ]
    if config.engine == "ddp":
        found.append(_buckets(rank))
    return found


def _buckets(rank: Rank) -> Entry:
    """Flat copies of all gradients; ``gradient_as_bucket_view`` is off by default."""
    nbytes = rank.passes.inventory.nbytes(trainable=True)
    return Entry(
        component="buffers",
        name="DDP gradient buckets",
        bytes=nbytes,
        formula=f"a flat copy of every gradient: {nbytes:,} bytes",
        source=DDP_SOURCE,
    )
