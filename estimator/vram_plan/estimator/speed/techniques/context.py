"""Context parallelism: keys and values travel around a ring, or heads are exchanged for tokens.

Ring attention passes on keys and values ``cp − 1`` times a layer, and going back keys, values and
their gradients, beside the attention of what has arrived (arXiv:2310.01889; Transformer Engine
``attention/dot_product_attention/context_parallel.py``). Whatever recomputes a block's attention,
Megatron's selective recomputation too, sends them anew. DeepSpeed's sequence parallelism (Ulysses,
arXiv:2309.14509) exchanges q, k, v and the output by all-to-all, four each way, and waits.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.simulate import RECOMPUTED
from vram_plan.estimator.speed.links import group_of
from vram_plan.estimator.speed.payload import (
    blocks,
    collective,
    fullest_rank,
    hidden_bytes,
    rank_tokens,
)
from vram_plan.estimator.speed.transfer import Transfer


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Traffic of attention over the context ranks."""
    if config.cp == 1:
        return ()
    group = group_of(config, config.cp, stride=config.tp)
    layers = blocks(fullest_rank(config)) * config.grad_accum
    forward = layers * (2 if config.checkpointing in RECOMPUTED else 1)
    keys = 2 * config.model.kv_dim // config.tp * rank_tokens(config) * config.compute_bytes
    if config.engine == "deepspeed":
        sizes = (2.0 * hidden_bytes(config) / config.tp, float(keys))
        pieces = [(size / 2, 2 * (forward + layers)) for size in sizes]
        return (collective("heads for tokens (Ulysses)", "all-to-all", pieces, group),)
    hops = config.cp - 1
    ring = "keys and values around the ring"
    there = [(float(keys), hops * forward)]
    back = [(float(2 * keys), hops * layers)]
    return (
        collective(ring, "point-to-point", there, group, overlaps="forward"),
        collective(f"{ring}, with gradients", "point-to-point", back, group, overlaps="backward"),
    )
