"""Bytes a configuration needs, and what is left over of the GPU asked about and its host."""

from __future__ import annotations

from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.memory import Memory
from vram_plan.estimator.planner import fullest, memory_of, plan_config, rank_ledgers

AMPLE = 2**62
"""Room where no GPU is asked about."""


class Need(NamedTuple):
    """Bytes a configuration needs: on a GPU with fragmentation, in the host, on NVMe."""

    required: int
    host: int
    nvme: int


def memory_needed(config: TrainConfig) -> Memory:
    """The memory of a plan, without what only its reader wants."""
    if config.training:
        return memory_of(config, fullest(rank_ledgers(config)))
    return plan_config(config).memory


def need(config: TrainConfig) -> Need:
    """From the ledger."""
    memory = memory_needed(config)
    return Need(memory.required_bytes, memory.host_bytes, memory.nvme_bytes)


def room(config: TrainConfig, needed: Need) -> int:
    """Bytes left over where it is tightest: not negative exactly where ``fit`` says "fits"."""
    if config.gpu is None:
        return AMPLE
    left = config.gpu.usable_bytes - needed.required
    node = config.node
    if node is not None:
        left = min(left, node.host_memory_bytes - needed.host)
        if needed.nvme:
            left = min(left, (node.nvme_bytes or 0) - needed.nvme)
    return left
