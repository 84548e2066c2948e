"""Megatron-LM: 16-bit weights, fp32 gradients in one buffer, fp32 masters and moments."""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import optimizer_states
from vram_plan.estimator.sharding.base import Rank, optimizer_entries, weights_entries


def keeps_gradients(config: TrainConfig) -> bool:
    """Gradients are added to the main buffer at once."""
    return False


def entries(rank: Rank) -> list[Entry]:
    """Weights, main gradients and the distributed optimizer's share of masters and moments."""
    config, inventory = rank.config, rank.passes.inventory
    ranks = config.shard_ranks
    states = optimizer_states(
        config.optimizer, inventory.weights, itemsize=4, scale=inventory.scale
    )
    share = type(states)(
        nbytes=-(-states.nbytes // ranks),
        step=0,
        formula=states.formula,
        step_formula="fused",
        source=states.source,
    )
    return [
        *weights_entries(rank),
        Entry(
            component="gradients",
            name="main gradients",
            bytes=4 * rank.trainable,
            formula="4 · trainable parameters",
            source="Megatron-LM",
            state=True,
        ),
        Entry(
            component="master_weights",
            name="fp32 master weights",
            bytes=-(-4 * rank.trainable // ranks),
            formula=f"4 · parameters / {ranks}",
            source="Megatron-LM",
            state=True,
        ),
        *optimizer_entries(share),
    ]
