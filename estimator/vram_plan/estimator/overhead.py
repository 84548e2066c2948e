"""What a process takes on the device outside PyTorch's allocator, and what fragmentation takes.

Constants that no source code gives are measured ones; each names where it was read.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.lengths import FIXED
from vram_plan.profiles import switches

MIB = 2**20

CONTEXT_BYTES = 500 * MIB
"""CUDA context, kernels loaded lazily: 300–500 MB from CUDA 11.7 on (pytorch#107667, #109888)."""
EAGER_CONTEXT_BYTES = 1_113 * MIB
"""The same with every kernel loaded at once: 1,113 MiB of a V100 with one element on it
(bigscience-workshop/bigscience @ 1dee360c ``experiments/tr3m-1B3.md``, calibration)."""
WORKSPACE_BYTES = 8_519_680
WIDE_WORKSPACES = {
    "Hopper": 32 * MIB,
    "Blackwell": 32 * MIB,
    "CDNA2": 32 * MIB,
    "RDNA3": 32 * MIB,
    "CDNA3": 128 * MIB,
    "CDNA4": 128 * MIB,
}
"""cuBLAS workspace of a thread: ``:4096:2:16:8`` kB unless the generation has one of its own (torch
2.13.0 ``aten/src/ATen/cuda/CublasHandlePool.cpp`` ``parseChosenWorkspaceSize``; published peaks of
the same Megatron-LM runs on H100 and GB200 are equal, so Blackwell is given Hopper's)."""
WORKSPACES = 2
"""The forward and the autograd thread have one each."""
WORKSPACE_SOURCE = "torch 2.13.0 aten/src/ATen/cuda/CublasHandlePool.cpp getNewWorkspace"
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
REPLAYED = frozenset({"torch", "ddp", "device-map"})
"""Engines under which a run's allocations are one known sequence."""
MADE_WITHIN_THE_STEP = ("activations", "logits", "kv_cache", "temporaries")


def overhead_bytes(config: TrainConfig) -> int:
    """What the ledger does not hold: CUDA context, a communicator for every group of the rank.

    Without a GPU the cuBLAS workspaces are here too, as their size is that of a generation.
    """
    lazy = switches.loads_kernels_lazily(config.stack, config.engine)
    total = (CONTEXT_BYTES if lazy else EAGER_CONTEXT_BYTES) + unlisted_workspaces(config)
    return total + sum(
        NCCL_PAIR_BYTES if ranks == 2 else NCCL_GROUP_BYTES
        for ranks in (*rank_groups(config), *pipeline_pairs(config))
    )


def rank_groups(config: TrainConfig) -> list[int]:
    """Sizes of the groups of ranks that a rank talks in, each through a communicator.

    A device map's GPUs are one process's, which copies from one to the next (accelerate 1.15.0
    ``hooks.py`` ``AlignDevicesHook``).
    """
    stages = 1 if config.engine == "device-map" else config.pp
    axes = (config.data_parallel, config.tp, stages, config.cp, config.ep)
    return [ranks for ranks in axes if ranks > 1]


def pipeline_pairs(config: TrainConfig) -> list[int]:
    """Groups of two that DeepSpeed's pipeline engine makes with the stages before and after.

    Activations and gradients travel in them, the loss in the group of all stages (deepspeed 0.19.8
    ``runtime/pipe/topology.py`` ``_build_p2p_groups``, ``engine.py`` ``_aggregate_total_loss``).
    """
    if config.engine != "megatron-deepspeed" or config.pp == 1:
        return []
    return [2] * min(2, config.pp - 1)


def workspace_bytes(config: TrainConfig) -> int:
    """One cuBLAS workspace; PyTorch's allocator hands it out."""
    chosen = switches.chosen_workspace(config.stack)
    if chosen is not None:
        return chosen
    if config.gpu is None:
        return WORKSPACE_BYTES
    return WIDE_WORKSPACES.get(config.gpu.architecture, WORKSPACE_BYTES)


def workspace_entries(config: TrainConfig) -> list[Entry]:
    """The cuBLAS workspaces of a training step on a named GPU, for plan and dry run alike.

    They stay from the first product on, so they are part of every instant. Where no GPU is named
    the plan is that of any device, a CPU included, and they are counted beside the ledger.
    """
    if config.gpu is None or not config.training:
        return []
    one = workspace_bytes(config)
    return [
        Entry(
            component="buffers",
            name="cuBLAS workspaces",
            bytes=WORKSPACES * one,
            formula=f"{WORKSPACES} threads · {one:,} bytes ({config.gpu.architecture})",
            source=WORKSPACE_SOURCE,
        )
    ]


def unlisted_workspaces(config: TrainConfig) -> int:
    """Bytes of the workspaces where the ledger does not list them."""
    return 0 if workspace_entries(config) else WORKSPACES * workspace_bytes(config)


def is_modelled(config: TrainConfig) -> bool:
    """Whether every storage of the run is known, so that the allocator can be asked.

    Whole states on each GPU, or of the blocks it holds (``device-map``), and nothing offloaded but
    activations, or FSDP's shards, FSDP1's on the host too. Other sharding engines allocate from
    several streams at moments that only the device knows, and compiled blocks under FSDP2 from
    buffers that the compiler has laid out; its quantized shards are not written down yet.
    """
    if config.engine in {"fsdp1", "fsdp2"}:
        places = {"none", "optimizer+params"} if config.engine == "fsdp1" else {"none"}
        plain = config.lengths == FIXED and config.offload in places
        if config.engine == "fsdp2":
            shared = config.model.model_type == "albert"  # a block that is gathered many times
            plain = plain and config.quantization == "none" and not shared
            plain = plain and config.cp == 1 and not config.compile
        return config.training and plain and config.tp * config.pp * config.ep == 1
    return (
        config.training
        and config.engine in REPLAYED
        and (config.pp == 1 or config.engine == "device-map")
        and config.offload in {"none", "activations"}
    )


def slack_bytes(components: dict[str, int]) -> int:
    """Fragmentation: a share of the bytes at the peak that are made and freed within the step."""
    return round(SLACK_SHARE * sum(components[name] for name in MADE_WITHIN_THE_STEP))
