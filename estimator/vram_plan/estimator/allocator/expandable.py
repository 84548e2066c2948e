"""Expandable segments: reserved addresses that are backed by memory as they are needed.

Source: pytorch ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.13.0), Note [Expandable Segments],
``find_expandable_block``, ``map_block``, ``try_allocate_expandable_block``, ``unmap_block``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.allocator.blocks import Block, Pool, Segment
from vram_plan.estimator.allocator.settings import SMALL_SEGMENT_BYTES

if TYPE_CHECKING:
    from vram_plan.estimator.allocator.caching import CachingAllocator

__all__ = ["allocate_expandable", "unmap"]

_ADDRESS_SPACE_BYTES = 2**41
"""Addresses of a segment where the device's memory is unknown; else 9/8 of that memory."""


def allocate_expandable(
    allocator: CachingAllocator, pool: Pool, size: int, stream: int
) -> Block | None:
    """Map memory until a free block of ``size`` is there; it leaves its pool.

    None where the device is full; what was mapped by then stays, free.
    """
    block = _find(allocator, pool, size, stream)
    if not block.mapped and not _map(allocator, block, min(block.size, size)):
        return None
    while block.size < size:
        following = block.next
        assert following is not None
        if not _map(allocator, following, min(size - block.size, following.size)):
            return None
        block = following  # it has subsumed the block before it
    pool.remove(block)
    return block


def _find(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> Block:
    """The lowest addresses with room for ``size``: unmapped ones and free blocks beside them."""
    for address in pool.unmapped.get(stream, ()):
        block = pool.unmapped_blocks[address]
        before = block.prev
        if before is not None and not before.allocated:
            block = before
        if _has_room(block, size):
            return block
    page = SMALL_SEGMENT_BYTES if pool.is_small else allocator.settings.large_segment_bytes
    limit = allocator.limit_bytes
    space = _ADDRESS_SPACE_BYTES if limit is None else limit + limit // 8
    space = max(-(-space // page), -(-size // page)) * page
    segment = Segment(allocator.new_address(space), space, page, stream)
    allocator.segments.append(segment)
    block = Block(segment.address, segment.size, pool, stream)
    block.mapped = False
    block.segment = segment
    pool.insert_unmapped(block)
    return block


def _has_room(block: Block, size: int) -> bool:
    found, following = 0, block
    while found < size:
        found += following.size
        if following.next is None or following.next.allocated:
            break
        following = following.next
    return found >= size


def _map(allocator: CachingAllocator, block: Block, size: int) -> bool:
    """Back the beginning of an unmapped block by whole pages (``map_block``)."""
    segment = block.segment
    assert segment is not None
    mapped = -(-size // segment.page) * segment.page
    if not allocator.has_room(mapped):
        return False
    pool = block.pool
    pool.remove_unmapped(block)
    block.mapped = True
    if mapped < block.size:
        rest = Block(block.address + mapped, block.size - mapped, pool, block.stream)
        rest.mapped = False
        rest.segment = segment
        rest.insert_after(block)
        pool.insert_unmapped(rest)
        block.size = mapped
    address = block.address
    allocator.merge(block, block.prev)
    allocator.merge(block, block.next)
    pool.insert(block)
    allocator.stats.reserve(mapped)
    allocator.note("segment_map", address, mapped, block.stream)
    return True


def unmap(allocator: CachingAllocator, block: Block) -> None:
    """Give back the whole pages inside a free block (``unmap_block``)."""
    segment, pool = block.segment, block.pool
    assert segment is not None
    first = -(-(block.address - segment.address) // segment.page)
    last = (block.address + block.size - segment.address) // segment.page
    if first < last:
        begin = segment.address + first * segment.page
        size = (last - first) * segment.page
        pool.remove(block)
        _cut_off(block, begin, size)
        block.mapped = False
        allocator.merge(block, block.prev)
        allocator.merge(block, block.next)
        pool.insert_unmapped(block)
        allocator.stats.give_back(size)
        allocator.note("segment_unmap", begin, size, block.stream)
    if not block.is_split and not block.mapped:
        pool.remove_unmapped(block)
        allocator.segments.remove(segment)


def _cut_off(block: Block, begin: int, size: int) -> None:
    """Leave ``block`` the range from ``begin`` on; what lies before and behind stays free."""
    before, behind = begin - block.address, block.address + block.size - (begin + size)
    if before:
        rest = Block(block.address, before, block.pool, block.stream)
        rest.segment = block.segment
        rest.insert_before(block)
        block.pool.insert(rest)
    if behind:
        rest = Block(begin + size, behind, block.pool, block.stream)
        rest.segment = block.segment
        rest.insert_after(block)
        block.pool.insert(rest)
    block.address, block.size = begin, size
