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
from vram_plan.estimator.step import BACKWARD_FIRST, BACKWARD_LAST, EMBEDDING_BACKWARD
from vram_plan.estimator.tape import ROUNDING_BYTES

DDP_SOURCE = "torch 2.13.0 torch/csrc/distributed/c10d/reducer.cpp initialize_buckets"


def keeps_gradients(config: TrainConfig) -> bool:
    """Gradients stay where autograd puts them, unless they are added to earlier ones."""
    return config.grad_accum == 1 and not config.optimizer_in_backward


def entries(rank: Rank) -> list[Entry]:
    """Weights, gradients and optimizer states, unsharded; DDP's buckets beside them."""
    config, inventory = rank.config, rank.passes.inventory
    states = optimizer_states(config.optimizer, inventory.weights, scale=inventory.scale)
    held = [*weights_entries(rank), *originals(rank)]
    if config.precision == "fp8":
        from vram_plan.estimator.sharding.fp8_weights import engine_state  # few ask for it
        from vram_plan.estimator.sharding.megatron import engine_workspace

        held += engine_state(rank, engine_workspace(config))
    if config.optimizer_in_backward:
        return [*held, *update_entries(rank, states)]
    found = [
        *held,
        *gradient_entries(rank),
        *optimizer_entries(states, config),
        clipping_entry(rank),
    ]
    if config.engine == "ddp":
        found.append(_buckets(rank))
    if config.grad_accum > 1:
        found.append(waiting_entry(rank))
    return found


def waiting_entry(rank: Rank) -> Entry:
    """A tied table's gradient from the head, which waits for the lookup's.

    Only their sum is added to the gradient of the micro-batches before; in the first micro-batch
    it is among the gradients that the passes leave.
    """
    links = rank.passes.links
    read = {p.name for link in links if link.segment.kind == "embedding" for p in link.cost.params}
    tied = [
        p
        for link in links
        if link.segment.kind == "head"
        for p in link.cost.params
        if p.trainable and p.name in read
    ]
    nbytes = sum(-(-p.numel * p.itemsize // ROUNDING_BYTES) * ROUNDING_BYTES for p in tied)
    return Entry(
        component="gradients",
        name="gradient of the tied table, waiting for its other half",
        bytes=nbytes,
        formula=f"{nbytes:,} bytes from the head until the lookup has gone back",
        source="torch 2.13.0 torch/csrc/autograd/input_buffer.cpp",
        alive=frozenset({BACKWARD_LAST, BACKWARD_FIRST, EMBEDDING_BACKWARD}),
    )


def _buckets(rank: Rank) -> Entry:
    """Flat copies of all gradients; ``gradient_as_bucket_view`` is off by default.

    Left out: every bucket of 25 MiB is rounded up by itself.
    """
    nbytes = rank.passes.inventory.flat_bytes(trainable=True)
    return Entry(
        component="buffers",
        name="DDP gradient buckets",
        bytes=nbytes,
        formula=f"a flat copy of every gradient: {nbytes:,} bytes",
        source=DDP_SOURCE,
    )
