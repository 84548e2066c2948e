"""Tensor and sequence parallelism: two collectives of hidden states a block, each way.

Without sequence parallelism the products by rows end in an all-reduce going forward, those by
columns in one going back. With it every all-reduce becomes a reduce-scatter and an all-gather, and
what was gathered going forward is gathered again for the weight's gradient (arXiv:2205.05198
section 4.2.2). Megatron-LM runs a column product's collectives beside the products of its backward
pass (``megatron/core/tensor_parallel/layers.py`` @ d98e8a64
``LinearWithGradAccumulationAndAsyncCommunication``); all others are waited for. Embedding and head
have one each way, the vocabulary-parallel loss three of fp32 scalars a token
(``tensor_parallel/cross_entropy.py``). NeMo's performance recipes set ``tp_comm_overlap`` (NVIDIA/
NeMo @ 0189a3b3 ``nemo/collections/llm/recipes/llama3_70b.py`` ``pretrain_recipe_performance``):
under sequence parallelism the collectives of a block then travel in pieces beside its products.
Left out: gradients of norms under sequence parallelism.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.speed.links import Group, group_of
from vram_plan.estimator.speed.payload import (
    blocks,
    collective,
    fullest_rank,
    hidden_bytes,
    rank_tokens,
)
from vram_plan.estimator.speed.techniques.megatron import overlaps
from vram_plan.estimator.speed.transfer import Transfer

PER_BLOCK = 2
"""Products by rows in a block: attention's and the feed-forward part's."""
_ASYNC = frozenset({"megatron", "megatron-deepspeed"})
_LOSS_REDUCTIONS = 3
_FP32 = 4


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Collectives over the tensor ranks, those of recomputation too."""
    if config.tp == 1:
        return ()
    rank, group = fullest_rank(config), group_of(config, config.tp)
    layers = PER_BLOCK * blocks(rank)
    again = layers if config.checkpointing in {"full", "offload"} else 0
    ends = _ends(rank)
    found = _parts(config, group, (layers + again + ends, layers, ends))
    if _has(rank, "head"):
        scalars = [(float(_FP32 * rank_tokens(config)), _LOSS_REDUCTIONS * config.grad_accum)]
        found.append(collective("loss over the vocabulary", "all-reduce", scalars, group))
    return tuple(one for one in found if one.count)


def _ends(rank: Rank) -> int:
    return sum(_has(rank, kind) for kind in ("embedding", "head"))


def _has(rank: Rank, kind: str) -> bool:
    return any(link.segment.kind == kind for link in rank.passes.links)


def _parts(config: TrainConfig, group: Group, counts: tuple[int, int, int]) -> list[Transfer]:
    forward, backward, ends = (count * config.grad_accum for count in counts)
    nbytes = float(hidden_bytes(config))
    behind = "backward" if config.engine in _ASYNC else None
    pieces = config.engine == "megatron" and overlaps(config)
    ahead, around = ("forward", "backward") if pieces else (None, None)

    def one(name: str, kind: str, count: int, hides: str | None = None) -> Transfer:
        return collective(name, kind, [(nbytes, count)] if count else [], group, overlaps=hides)

    if not config.sequence_parallel:
        return [
            one("hidden states", "all-reduce", forward),
            one("gradients of hidden states", "all-reduce", backward, behind),
            one("gradients of the head's input", "all-reduce", ends // 2),
        ]
    return [
        one("hidden states", "all-gather", forward, ahead),
        one("hidden states", "reduce-scatter", forward, ahead),
        one("gradients of hidden states", "all-gather", backward + ends, around),
        one("gradients of hidden states", "reduce-scatter", backward, behind),
        one("hidden states for weight gradients", "all-gather", backward, behind),
    ]
