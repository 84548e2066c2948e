"""1-bit Adam: momentum is communicated as signs, and what the signs lose is remembered.

Every weight has two further fp32 tensors once compression has begun: the rank's own error (the
weight's size, padded) and that of the slice it serves. Sources: arXiv:2102.02888; DeepSpeed up to
0.18 ``deepspeed/runtime/fp16/onebit/adam.py`` and ``runtime/comm/nccl.py`` (0.19.8 no longer has
it). It runs in the wrapper for optimizers other than FusedAdam.
"""

from __future__ import annotations

from math import gcd

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.optimizers import States
from vram_plan.estimator.sharding import zero0
from vram_plan.estimator.sharding.zero12 import weight_entries
from vram_plan.estimator.sharding.zero_moment import Candidate, moment_entries
from vram_plan.estimator.sharding.zero_parts import DS, FP32, Shares
from vram_plan.estimator.step import OPTIMIZER_STEP

SOURCE = "DeepSpeed ≤ 0.18 deepspeed/runtime/fp16/onebit/adam.py"


def padded(numel: int, ranks: int) -> int:
    """Elements of a weight's error: a multiple of ranks · lcm(ranks, 8)."""
    multiple = ranks * (ranks * 8 // gcd(ranks, 8))
    return -(-numel // multiple) * multiple


def entries(shares: Shares) -> list[Entry]:
    """Stage 0 with 1-bit Adam, after its warm-up."""
    total, ranks = shares.trainable, shares.ranks
    worker = sum(padded(piece.numel, ranks) for piece in shares.trained)
    states = States(
        nbytes=2 * FP32 * total,
        step=2 * FP32 * shares.largest,
        formula="2 fp32 moments",
        step_formula="one weight at a time: two fp32 tensors of the largest",
        source=SOURCE,
    )
    found = [e for e in weight_entries(shares) if "padding" not in e.name]
    return [
        *found,
        *zero0.gradient_entries(shares),
        _entry("master_weights", "fp32 master weights", FP32 * total, f"4 · {total:,} parameters"),
        *zero0.optimizer_state_entries(states, freed=0),
        _entry(
            "optimizer_states",
            "errors of compression (worker)",
            FP32 * worker,
            f"4 · {worker:,} elements, each weight padded for {ranks} ranks",
        ),
        _entry(
            "optimizer_states",
            "errors of compression (server)",
            FP32 * (worker // ranks),
            f"4 · {worker:,} / {ranks} elements",
        ),
        Entry(
            component="temporaries",
            name="fp32 gradients",
            bytes=FP32 * total,
            formula=f"4 · {total:,} parameters, beside the 16-bit ones",
            source=f"{DS}/fp16/unfused_optimizer.py step",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
        *moment_entries(shares, Candidate(at=None, copied=0, held=0), SOURCE),
    ]


def _entry(component: str, name: str, nbytes: int, formula: str) -> Entry:
    return Entry(
        component=component,
        name=name,
        bytes=nbytes,
        formula=formula,
        source=SOURCE,
        state=True,
    )
