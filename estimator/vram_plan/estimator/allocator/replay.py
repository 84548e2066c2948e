"""A timeline of allocations and frees, run through the allocator: what it reserves on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vram_plan.estimator.allocator.blocks import Block
from vram_plan.estimator.allocator.caching import CachingAllocator, OutOfMemory
from vram_plan.estimator.allocator.settings import AllocatorSettings
from vram_plan.estimator.allocator.statistics import Statistics

__all__ = ["Change", "Replay", "Replayer", "replay"]

Change = tuple[int, int]
"""A storage's number and by how many bytes it grows (or shrinks)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the allocator did.

    Attributes:
        outcome: ``ok``, or ``oom`` where a request failed.
        failed_at: number of the change that failed.
        stats: the counters at the end.
    """

    outcome: str
    failed_at: int | None
    stats: Statistics

    @property
    def allocated_peak_bytes(self) -> int:
        """``torch.cuda.max_memory_allocated``."""
        return self.stats.allocated_peak

    @property
    def reserved_peak_bytes(self) -> int:
        """``torch.cuda.max_memory_reserved``."""
        return self.stats.reserved_peak

    @property
    def fragmentation_bytes(self) -> int:
        """What is reserved at most beyond what is allocated at most."""
        return self.reserved_peak_bytes - self.allocated_peak_bytes


class Replayer:
    """Follows storages by number through an allocator."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.blocks: dict[int, Block] = {}

    def change(self, number: int, delta: int, stream: int = 0) -> Block | None:
        """One change, of a storage of that stream; the block that is new.

        A storage resized in place is a new block, made before the old one goes (pytorch
        ``aten/src/ATen/native/cuda/Resize.cpp``, ``resize_bytes_cuda``).
        """
        old = self.blocks.pop(number, None)
        size = delta if old is None else old.requested + delta
        block = None
        if size > 0:
            block = self.blocks[number] = self.allocator.malloc(size, stream)
        if old is not None:
            self.allocator.free(old)
        return block


def replay(
    changes: Iterable[Change],
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
    streams: Mapping[int, int] | None = None,
) -> Replay:
    """Run a timeline through the allocator.

    Args:
        changes: in the order in which they happen, from the loading of the weights on.
        settings: PyTorch's defaults when None.
        limit_bytes: what the device can hand out.
        streams: storages that are made on another stream than the default one, 0.
    """
    allocator = CachingAllocator(settings, limit_bytes=limit_bytes)
    replayer = Replayer(allocator)
    blocks, malloc, free = replayer.blocks, allocator.malloc, allocator.free
    done, of = 0, streams or {}
    try:
        for storage, delta in changes:
            held = blocks.get(storage)
            # Most storages come and go whole: without a call in between.
            if held is None and delta > 0:
                blocks[storage] = malloc(delta, of.get(storage, 0))
            elif held is not None and held.requested + delta == 0:
                free(blocks.pop(storage))
            else:
                replayer.change(storage, delta, of.get(storage, 0))
            done += 1
    except OutOfMemory:
        return Replay(outcome="oom", failed_at=done, stats=allocator.stats)
    return Replay(outcome="ok", failed_at=None, stats=allocator.stats)
