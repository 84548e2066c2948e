"""Giving cached memory back to the driver: when it is full, on request, or before it is full.

Source: pytorch ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.13.0).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from vram_plan.estimator.allocator.blocks import Block, Pool
from vram_plan.estimator.allocator.expandable import unmap

if TYPE_CHECKING:
    from vram_plan.estimator.allocator.caching import CachingAllocator

__all__ = ["collect_garbage", "release_available", "release_cached"]


def release_cached(allocator: CachingAllocator) -> None:
    """Give back all segments that are wholly free (``release_cached_blocks``)."""
    for pool in (allocator.large, allocator.small):
        growing = []
        for block in list(pool.in_order()):
            if block.segment is not None:
                growing.append(block)
            elif not block.is_split:
                _release(allocator, block)
        for block in growing:
            unmap(allocator, block)


def release_available(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> bool:
    """Give back just enough blocks that may not be split (``release_available_cached_blocks``).

    The smallest one that is large enough; else the largest ones, until the sum is.
    """
    limit = allocator.settings.max_split_bytes
    free = pool.free.get(stream)
    if limit is None or not free:
        return False
    wanted = max(size, limit)
    index = bisect_left(free, (wanted,))
    if index < len(free):
        block = free[index][2]
        if block.segment is None:
            _release(allocator, block)
        return True
    released = 0
    for _, _, block in free[::-1]:
        if released >= wanted or block.size < limit:
            break
        if block.segment is None:
            released += block.size
            _release(allocator, block)
    return released >= wanted


def collect_garbage(allocator: CachingAllocator) -> None:
    """Give back unused segments older than the average (``garbage_collect_cached_blocks``).

    A block's age is the number of searches of its pool since it became free.
    """
    allowed = allocator.allowed_bytes
    assert allowed is not None
    threshold = int(allocator.settings.garbage_collection_threshold * allowed)
    wanted = allocator.stats.reserved - threshold
    pool = allocator.large
    free = [b for b in pool.in_order() if not b.is_split and b.segment is None]
    reclaimed, freed = 0, True
    total_age = sum(pool.searches - block.born for block in free)
    while reclaimed < wanted and freed and free:
        average = total_age / len(free)
        freed = False
        for block in list(free):
            age = pool.searches - block.born
            if age >= average:
                freed = True
                reclaimed += block.size
                total_age -= age
                free.remove(block)
                _release(allocator, block)


def _release(allocator: CachingAllocator, block: Block) -> None:
    """``cudaFree`` of one segment (``release_block``)."""
    block.pool.remove(block)
    allocator.stats.segments -= 1
    allocator.stats.give_back(block.size)
    allocator.note("segment_free", block.address, block.size, block.stream)
