"""What a process takes on the device outside PyTorch's allocator, and what fragmentation takes.

Constants that no source code gives are measured ones; each names where it was read.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Ledger

MIB = 2**20

CONTEXT_BYTES = 500 * MIB
"""CUDA context with lazily loaded kernels: 300–500 MB from CUDA 11.7 on (pytorch#107667, #109888)."""
NCCL_PAIR_BYTES = 544 * MIB
NCCL_GROUP_BYTES = 688 * MIB
"""One communicator of 2 and of more than 2 GPUs, measured on 4 × A100 (NVIDIA/nccl#964)."""
SLACK_SHARE = 0.06
"""Upper bound of unreclaimable fragmentation as a share of what changes within a step."""


def overhead_bytes(config: TrainConfig) -> int:
    """CUDA context and one NCCL communicator for every kind of group the rank belongs to."""
    total = CONTEXT_BYTES
    for ranks in (config.data_parallel, config.tp, config.pp, config.cp, config.ep):
        if ranks > 1:
            total += NCCL_PAIR_BYTES if ranks == 2 else NCCL_GROUP_BYTES
    return total


def slack_bytes(config: TrainConfig, ledger: Ledger) -> int:
    """Fragmentation: a share of the bytes that are allocated and freed within the step."""
    totals = ledger.totals()
    moving = max(totals.values()) - min(totals.values(), default=0)
    return round(SLACK_SHARE * moving)
