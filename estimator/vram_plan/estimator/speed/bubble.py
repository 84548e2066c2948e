"""The pipeline bubble: how long a stage waits while others fill and drain the pipeline.

Of the time t that m micro-batches take a stage, (p − 1)/m is lost under GPipe and 1F1B, and
(p − 1)/(m · v) with v interleaved chunks (Narayanan et al., arXiv:2104.04473 section 2.2). Stages
that run one after the other (a device map) wait for all the others: p − 1.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig

__all__ = ["ratio"]


def ratio(config: TrainConfig) -> float:
    """Idle seconds for every second that a stage computes."""
    others = config.pp - 1
    if config.pp_schedule == "naive":
        return float(others)
    chunks = config.virtual_pipeline if config.pp_schedule == "interleaved" else 1
    return others / (config.grad_accum * chunks)
