"""Numbers of expert ranks that a model or its other ranks leave no room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vram_plan.estimator.choices import MEGATRON_BLOCKS
from vram_plan.estimator.config import TrainConfig
from vram_plan.profiles.megatron_switches import expert_tensor_ranks


def refused_experts(config: TrainConfig, given: Mapping[str, object]) -> Iterator[str]:
    """Expert ranks without experts, and what Megatron-LM's own layers ask of theirs.

    Expert ranks are data-parallel ones, and tensor ranks that do not divide an expert
    (``megatron/core/parallel_state.py``); ``MoELayer.forward`` raises where tensor ranks train
    without sequence parallelism.
    """
    model = config.model
    if config.ep > 1 and (not model.num_experts or model.num_experts % config.ep):
        has = f"{model.num_experts} experts" if model.num_experts else "no experts"
        yield f"--ep {config.ep}: {model.name} has {has}; choose a divisor or leave it out"
    if config.engine not in MEGATRON_BLOCKS or not model.num_experts:
        return
    if config.engine == "megatron" and config.tp > 1 and not config.sequence_parallel:
        yield (
            f"--tp {config.tp} of a model with experts: Megatron-LM trains it with sequence "
            "parallelism alone; leave --no-sequence-parallel out"
        )
    divided = config.ep * expert_tensor_ranks(config.stack, config.tp)
    if config.shard_ranks * config.tp % divided:
        yield (
            f"--ep {config.ep}: the {config.shard_ranks} data-parallel ranks are not divisible by "
            f"{config.ep}; choose a divisor"
        )
