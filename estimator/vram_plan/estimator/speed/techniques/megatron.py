"""Megatron-LM's data parallelism: fp32 gradients reduced at the end, 16-bit weights gathered.

``--use-distributed-optimizer`` (on unless ``--zero 0``) reduce-scatters the fp32 gradient buffer
and all-gathers the updated weights, else the buffer is all-reduced; gradients accumulate, and
travel, in fp32 with bf16 weights (``megatron/training/arguments.py`` @ d98e8a64
``accumulate_allreduce_grads_in_fp32``). ``--overlap-grad-reduce`` and ``--overlap-param-gather``
are off there; NeMo's recipes turn both on (NVIDIA-NeMo/Megatron-Bridge
``src/megatron/bridge/recipes/common.py``), which a NeMo container in the stack says. Nanotron
reduces behind the last backward pass (``nanotron/parallel/data_parallel/utils.py``).
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.sharding.megatron import FP32_BYTES
from vram_plan.estimator.speed.links import Group, group_of
from vram_plan.estimator.speed.payload import (
    collective,
    data_group,
    fullest_rank,
    trained_bytes,
)
from vram_plan.estimator.speed.techniques import fsdp
from vram_plan.estimator.speed.transfer import Transfer

_BUCKET_ELEMENTS = 40_000_000
"""Least elements of a piece that is reduced behind the backward pass
(``megatron/core/distributed/distributed_data_parallel.py`` ``bucket_size``)."""


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Gradients and weights, experts over the ranks that hold the same ones.

    Megatron-FSDP gathers and scatters by blocks as PyTorch's does.
    """
    if config.fsdp:
        return fsdp.transfers(config)
    rank = fullest_rank(config)
    found: list[Transfer] = []
    for experts, group in ((False, data_group(config)), (True, _expert_group(config))):
        if group.ranks > 1:
            found += _reduce_and_gather(config, rank, group, experts=experts)
    return tuple(one for one in found if one.bytes)


def _expert_group(config: TrainConfig) -> Group:
    stride = config.tp * config.ep
    return group_of(config, max(1, config.shard_ranks // config.ep), stride=stride)


def _reduce_and_gather(
    config: TrainConfig, rank: Rank, group: Group, *, experts: bool
) -> list[Transfer]:
    wide = trained_bytes(rank, FP32_BYTES, experts=experts)
    whose = " of experts" if experts else ""
    kind = "all-reduce" if config.zero == 0 else "reduce-scatter"
    behind = "backward" if overlaps(config) else None
    count = max(1, int(wide / FP32_BYTES // _BUCKET_ELEMENTS)) if behind else 1
    window = 1 / config.grad_accum
    found = [
        collective(
            f"gradient {kind}{whose}",
            kind,
            [(wide / count, count)],
            group,
            overlaps=behind,
            window=window if behind else 1.0,
        )
    ]
    if config.zero != 0:
        narrow = trained_bytes(rank, config.compute_bytes, experts=experts)
        found.append(
            collective(
                f"all-gather of updated weights{whose}",
                "all-gather",
                [(narrow / count, count)],
                group,
                overlaps="forward" if behind and config.engine == "megatron" else None,
                window=window if behind and config.engine == "megatron" else 1.0,
            )
        )
    return found


def overlaps(config: TrainConfig) -> bool:
    """Gradients are reduced while the last backward pass runs."""
    return config.engine == "nanotron" or bool(config.stack.version("nemo-container"))
