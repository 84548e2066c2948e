"""Expert parallelism: tokens go to their experts' ranks and come back, both ways.

Two all-to-alls of tokens · experts a token · hidden size going forward, two going back, and two
more where the block is recomputed; all are waited for. Balanced routing is assumed.
``megatron/core/transformer/moe/token_dispatcher.py`` @ d98e8a64 (``MoEAlltoAllTokenDispatcher``).
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.links import group_of
from vram_plan.estimator.speed.payload import blocks, collective, fullest_rank, hidden_bytes
from vram_plan.estimator.speed.transfer import Transfer


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Dispatch and combination of tokens."""
    if config.ep == 1:
        return ()
    group = group_of(config, config.ep, stride=config.tp)
    layers = blocks(fullest_rank(config), sparse=True) * config.grad_accum
    passes = 3 if config.checkpointing in {"full", "offload"} else 2
    split = config.tp if config.sequence_parallel else 1
    nbytes = hidden_bytes(config) * max(1, config.model.num_experts_per_tok) / split
    pieces = [(nbytes, 2 * passes * layers)]
    return (collective("tokens to experts and back", "all-to-all", pieces, group),)
