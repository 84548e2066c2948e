"""ZeRO-1 with 16-bit weights and fp32 gradient accumulation: DeepSpeed's BF16_Optimizer.

Every rank keeps an fp32 gradient of every weight in one flat buffer, to which each micro-batch's
16-bit gradients are added; they stay until the update is done. The all-reduce casts the flat
buffer to 16 bits. Source: DeepSpeed 0.19.8 ``deepspeed/runtime/bf16_optimizer.py``, ``engine.py``.
"""

from __future__ import annotations

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.zero12 import state_entries, weight_entries
from vram_plan.estimator.sharding.zero_parts import DS, FP32, REDUCTION, Shares
from vram_plan.estimator.step import CLIPPING, OPTIMIZER_STEP

SOURCE = f"{DS}/bf16_optimizer.py"


def entries(shares: Shares) -> list[Entry]:
    """Every weight, gradient and state."""
    total, width = shares.trainable, shares.width
    return [
        *weight_entries(shares),
        *state_entries(shares, shares.partition, freed=0),
        Entry(
            component="gradients",
            name="fp32 gradients of all weights",
            bytes=FP32 * total,
            formula=f"4 · {total:,} parameters, not divided",
            source=f"{SOURCE} fp32_groups_gradients_flat",
            state=True,
        ),
        Entry(
            component="gradients",
            name="16-bit gradients of one micro-batch",
            bytes=width * total,
            formula=f"{width} · {total:,} parameters",
            source=f"{SOURCE} update_hp_grads",
            alive=frozenset({REDUCTION, CLIPPING, OPTIMIZER_STEP}),
        ),
        Entry(
            component="temporaries",
            name="16-bit copy of the flat gradients for their all-reduce",
            bytes=width * total,
            formula=f"{width} · {total:,} parameters",
            source=f"{DS}/engine.py allreduce_bucket",
            alive=frozenset({REDUCTION}),
        ),
    ]


def runs(shares: Shares) -> bool:
    """Whether DeepSpeed chooses this wrapper."""
    return (
        shares.config.zero == 1
        and shares.mixed
        and shares.grad_width == FP32
        and not shares.offloaded
    )
