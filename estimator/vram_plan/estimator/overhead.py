"""What a process takes on the device outside PyTorch's allocator, and what fragmentation takes.

Constants that no source code gives are measured ones; each names where it was read.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig

MIB = 2**20

CONTEXT_BYTES = 500 * MIB
"""CUDA context, kernels loaded lazily: 300–500 MB from CUDA 11.7 on (pytorch#107667, #109888)."""
WORKSPACE_BYTES, HOPPER_WORKSPACE_BYTES = 8_519_680, 32 * MIB
"""cuBLAS workspace of a thread: ``:4096:2:16:8`` kB before Hopper (torch 2.13.0
``aten/src/ATen/cuda/CublasHandlePool.cpp``). The forward and the autograd thread have one each."""
NCCL_PAIR_BYTES = 544 * MIB
NCCL_GROUP_BYTES = 688 * MIB
"""One communicator of 2 and of more than 2 GPUs, measured on 4 × A100 (NVIDIA/nccl#964)."""
SLACK_SHARE = 0.17
"""Fragmentation the allocator cannot give back, at most: a share of what is made within a step.

Calibrated on outcomes (``python -m vram_plan.reports.calibrate`` prints it; a test holds it to the
data file): the smallest share, rounded up, at which no run that failed for want of so little is
said to fit. The deciding runs are full fine-tunes of Mistral-7B, micro-batch 16, of
foundation-model-stack/fms-acceleration (commit 876e2ed, ``scripts/benchmarks/refs``): they failed
needing 73.6 GiB of 79.15 GiB, 32.6 GiB of them made within the step.
"""
MADE_WITHIN_THE_STEP = ("activations", "logits", "kv_cache", "temporaries")


def overhead_bytes(config: TrainConfig) -> int:
    """CUDA context, cuBLAS workspaces, and an NCCL communicator for every group of the rank."""
    total = CONTEXT_BYTES + 2 * workspace_bytes(config)
    for ranks in (config.data_parallel, config.tp, config.pp, config.cp, config.ep):
        if ranks > 1:
            total += NCCL_PAIR_BYTES if ranks == 2 else NCCL_GROUP_BYTES
    return total


def workspace_bytes(config: TrainConfig) -> int:
    """One cuBLAS workspace; PyTorch's allocator hands it out."""
    if config.gpu is not None and config.gpu.architecture in {"Hopper", "Blackwell"}:
        return HOPPER_WORKSPACE_BYTES
    return WORKSPACE_BYTES


def is_modelled(config: TrainConfig) -> bool:
    """Whether every storage of the run is known, so that the allocator can be asked.

    Whole states on each GPU, nothing offloaded but activations: sharding engines allocate from
    several streams at moments that only the device knows.
    """
    return (
        config.training
        and config.engine in {"torch", "ddp"}
        and config.pp == 1
        and config.offload in {"none", "activations"}
    )


def slack_bytes(components: dict[str, int]) -> int:
    """Fragmentation: a share of the bytes at the peak that are made and freed within the step."""
    return round(SLACK_SHARE * sum(components[name] for name in MADE_WITHIN_THE_STEP))
