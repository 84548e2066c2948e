"""DeepSpeed: which of its engines runs a configuration."""

from __future__ import annotations

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding import onebit, zero0, zero1_wide, zero3, zero12, zero_reduce
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.replicated import waiting_entry
from vram_plan.estimator.sharding.zero3_links import with_gathered
from vram_plan.estimator.sharding.zero_parts import REDUCTION, Shares
from vram_plan.estimator.step import CLIPPING, OPTIMIZER_STEP, PASSES

INSTANTS = (*PASSES, REDUCTION, CLIPPING, OPTIMIZER_STEP)
"""DeepSpeed's step has one instant more: a bucket of gradients is reduced."""


def keeps_gradients(config: TrainConfig) -> bool:
    """Whether gradients stay where autograd puts them until the backward pass is over."""
    if config.zero == 1 and config.zero_sizes.grad_accum_bytes > config.compute_bytes:
        return True
    if config.grad_accum > 1 or config.zero in {2, 3}:
        return False
    return not (config.zero == 1 and config.zero_sizes.overlap_comm)


def links(rank: Rank) -> tuple[Link, ...]:
    """The chain with what stages 1 to 3 hold beside its segments."""
    shares = Shares(rank)
    plain = rank.config.optimizer == "one-bit-adam" or zero1_wide.runs(shares)
    if plain or not rank.config.zero:
        return rank.passes.links
    return with_gathered(shares) if rank.config.zero == 3 else zero_reduce.links(shares)


def entries(rank: Rank) -> list[Entry]:
    """Everything but activations that one rank holds under DeepSpeed."""
    found = _entries(rank)
    return found if keeps_gradients(rank.config) else [*found, waiting_entry(rank)]


def resident(rank: Rank) -> list[Entry]:
    """The same, as far as it is there whatever the passes do: no bucket of gradients."""
    shares = Shares(rank)
    if rank.config.optimizer == "one-bit-adam" or zero1_wide.runs(shares) or not rank.config.zero:
        return _entries(rank)
    return zero3.resident(shares) if rank.config.zero == 3 else zero12.resident(shares)


def _entries(rank: Rank) -> list[Entry]:
    shares = Shares(rank)
    if rank.config.optimizer == "one-bit-adam":
        return onebit.entries(shares)
    if zero1_wide.runs(shares):
        return zero1_wide.entries(shares)
    if rank.config.zero == 3:
        return zero3.entries(shares)
    if rank.config.zero in {1, 2}:
        return zero12.entries(shares)
    return zero0.entries(shares)
