"""Optimizer in backward: each weight is updated, and its gradient freed, as soon as it arrives.

torchtune ``training/memory.py`` ``register_optim_in_bwd_hooks`` gives every parameter an optimizer
of its own and calls it from ``register_post_accumulate_grad_hook``; there is nothing to clip then,
and no second micro-batch to add to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import States, optimizer_states
from vram_plan.estimator.sharding.base import Rank, state_entries
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    EMBEDDING_BACKWARD,
    LOSS_BACKWARD,
)

SOURCE = "torchtune training/memory.py register_optim_in_bwd_hooks"
_BLOCKS = frozenset({BACKWARD_FIRST, BACKWARD_LAST})
_TABLES = frozenset({EMBEDDING_BACKWARD, LOSS_BACKWARD})


def update_entries(rank: Rank, states: States) -> list[Entry]:
    """The states, and what one weight's update takes while the backward pass runs."""
    weights = rank.passes.inventory.weights
    return [
        *state_entries(states, rank.config),
        _temporary(rank, (w for w in weights if w.layered), _BLOCKS, "a block's weight"),
        _temporary(rank, (w for w in weights if not w.layered), _TABLES, "a table"),
    ]


def _temporary(rank: Rank, weights: Iterable[Weight], alive: frozenset[str], words: str) -> Entry:
    """Temporaries of the update of the largest of ``weights``, alone in its optimizer."""
    name, scale = rank.config.optimizer, rank.passes.inventory.scale
    alone = [optimizer_states(name, [replace(w, count=1)], scale=scale) for w in weights]
    most = max(alone, key=lambda one: one.step, default=None)
    return Entry(
        component="temporaries",
        name=f"temporaries of the update of {words}",
        bytes=most.step if most else 0,
        formula=most.step_formula if most else "no such weight learns",
        source=SOURCE,
        alive=alive,
    )
