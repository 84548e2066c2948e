"""What ZeRO-Offload and ZeRO-Infinity keep in host memory and on NVMe, and what stays behind.

Host and NVMe bytes are those of all ranks of a node. Pinned buffers come from PyTorch's caching
host allocator, which takes powers of two (torch 2.13.0 aten/src/ATen/core/CachingHostAllocator.h).
Left out: the process itself, and pageable copies that exist only while a buffer is pinned.
"""

from __future__ import annotations

from vram_plan.estimator.ledger import Entry, Place
from vram_plan.estimator.sharding.zero_parts import DS, FP32, Shares

CPU_ADAM = "DeepSpeed 0.19.8 deepspeed/ops/adam/cpu_adam.py"
STAGE12 = f"{DS}/zero/stage_1_and_2.py"
STAGE3 = f"{DS}/zero/stage3.py"
SWAPPER = f"{DS}/swap_tensor"
AIO_BLOCK_BYTES = 1024**2
"""Smallest tensor that is swapped (``swap_tensor/utils.py`` MIN_AIO_BYTES)."""


def pinned(shares: Shares, nbytes: int) -> int:
    """Bytes of one pinned buffer: a power of two."""
    if not nbytes or not shares.config.zero_sizes.pin_memory:
        return nbytes
    return 1 << (nbytes - 1).bit_length()


def away(
    shares: Shares, component: str, name: str, nbytes: int, source: str, *, place: Place = "host"
) -> Entry:
    """An entry of all ranks of a node outside the GPU."""
    local = shares.config.gpus_per_node
    return Entry(
        component=component,
        name=name,
        bytes=nbytes * local,
        formula=f"{nbytes:,} bytes a rank × {local} ranks of a node",
        source=source,
        place=place,
        state=component != "buffers",
    )


def flat_offload_entries(shares: Shares) -> list[Entry]:
    """Stages 1 and 2 with the optimizer on the host."""
    size, width = shares.partition, shares.width
    accumulates = shares.config.grad_accum > 1 and shares.config.zero == 2
    fp32 = pinned(shares, FP32 * size)
    staging = width * shares.largest
    kept = sum(pinned(shares, width * n) for n in _in_partition(shares)) if accumulates else 0
    return [
        Entry(
            component="buffers",
            name="staging buffer for gradients from the host",
            bytes=staging,
            formula=f"{width} · {shares.largest:,} elements (the largest weight)",
            source=f"{STAGE12} temp_grad_buffer_for_gpu_offload",
        ),
        away(shares, "master_weights", "fp32 master weights (pinned)", fp32, STAGE12),
        away(shares, "gradients", "fp32 gradients of the partition (pinned)", fp32, STAGE12),
        away(shares, "optimizer_states", "Adam moments", 2 * FP32 * size, CPU_ADAM),
        away(shares, "buffers", "updated weights (pinned)", pinned(shares, width * size), STAGE12),
        away(shares, "buffers", "staging buffer (pinned)", pinned(shares, staging), STAGE12),
        away(shares, "buffers", "gradients of earlier micro-batches (pinned)", kept, STAGE12),
    ]


def _in_partition(shares: Shares) -> list[int]:
    """Weights of the partition of the first rank."""
    return [end - begin for begin, end in shares.layout.ranges.values() if begin < shares.partition]


def divided_offload_entries(shares: Shares, groups: list[int]) -> list[Entry]:
    """Stage 3 with the optimizer on the host or on NVMe; ``groups`` are a rank's sub-groups."""
    size = sum(groups)
    accumulated = pinned(shares, shares.grad_width * size)
    found = [away(shares, "gradients", "gradients of the partition (pinned)", accumulated, STAGE3)]
    swapped = 0
    if shares.config.offload_device == "nvme":
        swapped = sum(g for g in groups if FP32 * g >= AIO_BLOCK_BYTES)
        found += _swapped_entries(shares, swapped, max(groups, default=0))
    here = [g for g in groups if not swapped or FP32 * g < AIO_BLOCK_BYTES]
    held = sum(here)
    wide = sum(pinned(shares, FP32 * g) for g in here)
    return [
        *found,
        away(shares, "master_weights", "fp32 master weights", FP32 * held, STAGE3),
        away(shares, "gradients", "fp32 gradients of sub-groups (pinned)", wide, STAGE3),
        away(shares, "optimizer_states", "Adam moments", 2 * FP32 * held, CPU_ADAM),
    ]


def _swapped_entries(shares: Shares, elements: int, largest: int) -> list[Entry]:
    """Optimizer states on NVMe, and the pinned buffers they pass through."""
    count = shares.config.zero_sizes.optimizer_buffer_count
    nvme: Place = "nvme"
    source = f"{SWAPPER}/optimizer_utils.py"
    return [
        away(shares, "master_weights", "fp32 master weights", FP32 * elements, source, place=nvme),
        away(shares, "gradients", "fp32 gradients", FP32 * elements, source, place=nvme),
        away(shares, "optimizer_states", "Adam moments", 2 * FP32 * elements, source, place=nvme),
        away(
            shares,
            "buffers",
            f"{count} swap buffers of the largest sub-group (locked)",
            count * FP32 * largest,
            source,
        ),
    ]


def weight_offload_entries(shares: Shares, trainable: int, frozen: int) -> list[Entry]:
    """Stage 3 with the divided weights on the host or on NVMe; elements a rank holds."""
    width, sizes = shares.width, shares.config.zero_sizes
    on_host = trainable
    found = []
    if (sizes.offload_param_device or shares.config.offload_device) == "nvme":
        on_host = min(trainable, sizes.max_in_cpu)
        gone = trainable - on_host + frozen
        buffers = sizes.param_buffer_count * sizes.param_buffer_size
        source = f"{SWAPPER}/partitioned_param_swapper.py"
        found = [
            away(shares, "weights", "weights on NVMe", width * gone, source, place="nvme"),
            away(
                shares,
                "buffers",
                f"{sizes.param_buffer_count} swap buffers for weights (locked)",
                width * buffers,
                source,
            ),
        ]
        frozen = 0
    return [
        *found,
        away(
            shares,
            "weights",
            "trainable weights (pinned)",
            pinned(shares, width * on_host),
            STAGE3,
        ),
        away(shares, "weights", "frozen weights (pinned)", width * frozen, STAGE3),
    ]
