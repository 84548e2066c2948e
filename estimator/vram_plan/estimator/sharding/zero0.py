"""DeepSpeed without sharding (stage 0): whole fp32 master weights and states on every rank.

With its FusedAdam the master weights are one flat tensor, and the update first casts every
gradient and then copies the casts into one flat tensor: 4 + 4 bytes a parameter beside the
gradients. With another optimizer each weight has its own fp32 copy and gradient. In fp32 there
is no wrapper. Source: DeepSpeed 0.19.8 ``deepspeed/runtime/fp16/fused_optimizer.py``,
``fp16/unfused_optimizer.py``, ``engine.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import States, optimizer_states
from vram_plan.estimator.sharding.base import paged_entry
from vram_plan.estimator.sharding.zero12 import weight_entries
from vram_plan.estimator.sharding.zero_moment import Candidate, moment_entries
from vram_plan.estimator.sharding.zero_parts import DS, FP32, REDUCTION, Shares
from vram_plan.estimator.step import CLIPPING, OPTIMIZER_STEP

FUSED = f"{DS}/fp16/fused_optimizer.py"
UNFUSED = f"{DS}/fp16/unfused_optimizer.py"
REDUCED_AT_ONCE = 500_000_000
"""Elements of gradients in one all-reduce (``runtime/constants.py`` MEMORY_OPT_ALLREDUCE_SIZE)."""


def entries(shares: Shares) -> list[Entry]:
    """Every weight, gradient, state and temporary of stage 0."""
    found = [e for e in weight_entries(shares) if "padding" not in e.name]
    states = _states(shares)
    return [
        *found,
        *gradient_entries(shares),
        *_master_entries(shares),
        *optimizer_state_entries(states, freed=_copies(shares) - FP32 * shares.trainable),
        paged_entry(states, shares.config),
        *_update_entries(shares),
        *moment_entries(shares, _reduction(shares), f"{DS}/engine.py allreduce_bucket"),
    ]


def fused(shares: Shares) -> bool:
    """The flat wrapper runs: 16-bit weights and DeepSpeed's FusedAdam."""
    return shares.mixed and shares.config.optimizer == "adamw"


def _states(shares: Shares) -> States:
    if fused(shares):
        return shares.states(shares.trainable)
    name = "adamw-fused" if shares.config.optimizer == "adamw" else shares.config.optimizer
    inventory = shares.inventory
    return optimizer_states(name, inventory.weights, itemsize=FP32, scale=inventory.scale)


def gradient_entries(shares: Shares) -> list[Entry]:
    """Gradients where autograd leaves them, until the update has read them."""
    always = shares.config.grad_accum > 1
    instants = {REDUCTION, CLIPPING, OPTIMIZER_STEP}
    return [
        Entry(
            component="gradients",
            name="gradients of trainable weights",
            bytes=shares.width * shares.trainable,
            formula=f"{shares.width} · {shares.trainable:,} parameters",
            source="torch 2.13.0 torch/csrc/autograd/functions/accumulate_grad.h",
            alive=frozenset() if always else frozenset(instants),
            state=True,
        )
    ]


def _master_entries(shares: Shares) -> list[Entry]:
    nbytes = FP32 * shares.trainable if shares.mixed else 0
    return [
        Entry(
            component="master_weights",
            name="fp32 master weights",
            bytes=nbytes,
            formula=f"4 · {shares.trainable:,} parameters",
            source=FUSED if fused(shares) else UNFUSED,
            state=True,
        )
    ]


def optimizer_state_entries(states: States, *, freed: int) -> list[Entry]:
    """Optimizer states, and temporaries beyond gradient copies that are gone by then."""
    return [
        Entry(
            component="optimizer_states",
            name="optimizer states",
            bytes=states.nbytes,
            formula=states.formula,
            source=states.source,
            state=True,
        ),
        Entry(
            component="temporaries",
            name="temporaries of the optimizer beyond the gradient copies it no longer needs",
            bytes=max(0, states.step - max(0, freed)),
            formula=states.step_formula,
            source=states.source,
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]


def _copies(shares: Shares) -> int:
    if not shares.mixed:
        return FP32 * shares.trainable
    if fused(shares):
        return 2 * FP32 * shares.trainable + shares.width * shares.trainable
    return FP32 * shares.trainable


def _update_entries(shares: Shares) -> list[Entry]:
    """The fp32 gradients of the update."""
    if not shares.mixed:
        return []
    times = 2 if fused(shares) else 1
    formula = f"{times} × 4 · {shares.trainable:,} parameters"
    formula += ": every gradient in fp32, and all in one flat tensor" if times == 2 else ""
    return [
        Entry(
            component="temporaries",
            name="fp32 copies of the gradients",
            bytes=times * FP32 * shares.trainable,
            formula=formula,
            source=f"{FUSED if fused(shares) else UNFUSED} step",
            alive=frozenset({OPTIMIZER_STEP}),
        )
    ]


def _reduction(shares: Shares) -> Candidate:
    """The largest group of gradients copied flat for one all-reduce, after the backward pass."""
    copied = shares.width * max(_groups(shares), default=0)
    return Candidate(at=None, copied=copied, held=0)


def _groups(shares: Shares) -> Iterator[int]:
    held = count = 0
    for piece in shares.trained:
        held, count = held + piece.numel, count + 1
        if held > REDUCED_AT_ONCE:
            yield held if count > 1 else 0
            held = count = 0
    yield held if count > 1 else 0
