"""PyTorch's caching allocator for CUDA: best fit, splits, merges, and what it does when full.

Source of every rule: pytorch ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.13.0), by the name of
its function. Left out: CUDA graphs' private pools, and blocks that another stream still uses
(``record_stream``), which wait for an event that a model of memory alone does not see.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from vram_plan.estimator.allocator.blocks import Block, Pool, Segment
from vram_plan.estimator.allocator.expandable import allocate_expandable
from vram_plan.estimator.allocator.reclaim import (
    collect_garbage,
    release_available,
    release_cached,
)
from vram_plan.estimator.allocator.settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    AllocatorSettings,
)
from vram_plan.estimator.allocator.statistics import Statistics

__all__ = ["CachingAllocator", "Observer", "OutOfMemory"]

Observer = Callable[[str, int, int, int], None]
"""Told of (action, address, bytes, stream), actions as in PyTorch's memory snapshots."""

_BASE_ADDRESS = 0x7F00_0000_0000


class OutOfMemory(Exception):  # noqa: N818  # torch's name is OutOfMemoryError; this is a finding
    """A request that no free block and no further segment could serve."""

    def __init__(self, requested: int, allocated: int, reserved: int) -> None:
        self.requested = requested
        self.allocated = allocated
        self.reserved = reserved
        super().__init__(
            f"out of memory: {requested:,} bytes requested, {allocated:,} allocated, "
            f"{reserved - allocated:,} reserved but unallocated"
        )


class CachingAllocator:
    """One device's allocator.

    Segments get rising addresses; the driver's own choice matters only where two free blocks of
    one size compete.

    Args:
        settings: PyTorch's defaults when None.
        limit_bytes: what the driver can hand out; None: everything asked for.
        observer: told of every event.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        *,
        limit_bytes: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.limit_bytes = limit_bytes
        self.observer = observer
        self.stats = Statistics()
        self.small = Pool(is_small=True)
        self.large = Pool(is_small=False)
        self.active: dict[int, Block] = {}
        self.segments: list[Segment] = []
        self._next_address = _BASE_ADDRESS
        self._rounds = bool(self.settings.roundup_power2_divisions)
        self._collects = bool(
            self.settings.garbage_collection_threshold
            and self.settings.memory_fraction is not None
            and limit_bytes is not None
        )

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        """Serve a request of at least one byte.

        Raises:
            OutOfMemory: nothing left, even after giving back all that is cached.
        """
        if self._rounds or nbytes < MIN_BLOCK_BYTES:
            size = self.settings.round_size(nbytes)
        else:
            size = (nbytes + MIN_BLOCK_BYTES - 1) // MIN_BLOCK_BYTES * MIN_BLOCK_BYTES
        pool = self.small if size <= SMALL_BYTES else self.large
        block = self._find_free(pool, size, stream) or self._grow(pool, size, stream)
        return self._hand_out(block, size, nbytes)

    def free(self, block: Block) -> None:
        """Take a block back into its pool, merged with free neighbours (``free_block``)."""
        stats, size = self.stats, block.size
        if not block.allocated:
            raise ValueError(f"the block at {block.address:#x} is not in use: freed twice?")
        block.allocated = False
        stats.allocations -= 1
        stats.allocated -= size
        stats.requested -= block.requested
        if self.observer is not None:
            self.observer("free_requested", block.address, block.requested, block.stream)
            self.observer("free_completed", block.address, block.requested, block.stream)
        del self.active[block.address]
        count = 0
        for neighbour in (block.prev, block.next):
            if neighbour is not None and not neighbour.allocated and self.merge(block, neighbour):
                count -= 1
        change = size - block.size
        block.pool.insert(block)
        if block.segment is None and (count or block.prev is not None or block.next is not None):
            if block.prev is not None or block.next is not None:
                count += 1
                change += block.size
            stats.split_change(count, change)

    def empty_cache(self) -> None:
        """Give back every segment, or page of one, that nothing uses."""
        release_cached(self)

    def blocks(self) -> Iterator[Block]:
        """Every block that has memory, in no order."""
        yield from self.active.values()
        yield from self.small.in_order()
        yield from self.large.in_order()

    def merge(self, block: Block, other: Block | None) -> int:
        """Let ``block`` subsume a free neighbour (``try_merge_blocks``); the bytes it gains."""
        if other is None or other.allocated or other.mapped != block.mapped:
            return 0
        if other.mapped:
            block.pool.remove(other)
        else:
            block.pool.remove_unmapped(other)
        if block.prev is other:
            block.address = other.address
            block.prev = other.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            block.next = other.next
            if block.next is not None:
                block.next.prev = block
        block.size += other.size
        return other.size

    def new_address(self, size: int) -> int:
        """Addresses that were never used before."""
        address = self._next_address
        self._next_address += size
        return address

    def has_room(self, size: int) -> bool:
        """Whether the driver can hand out ``size`` bytes more."""
        return self.limit_bytes is None or self.stats.reserved + size <= self.limit_bytes

    @property
    def allowed_bytes(self) -> int | None:
        """What ``set_per_process_memory_fraction`` allows (``allowed_memory_maximum``)."""
        fraction = self.settings.memory_fraction
        if fraction is None or self.limit_bytes is None:
            return None
        return int(fraction * self.limit_bytes)

    def note(self, action: str, address: int, size: int, stream: int) -> None:
        """Tell the observer."""
        if self.observer is not None:
            self.observer(action, address, size, stream)

    def _find_free(self, pool: Pool, size: int, stream: int) -> Block | None:
        """The smallest free block that holds ``size``, lowest address first (get_free_block)."""
        if self._collects:
            pool.searches += 1
        free = pool.free.get(stream)
        if not free:
            return None
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        block = free[index][2]
        if block.segment is not None:
            index = _least_room(free, index)
            block = free[index][2]
        limit = self.settings.max_split_bytes
        if limit is not None:
            if size < limit <= block.size:
                return None
            if size >= limit and block.size >= size + self.settings.max_non_split_rounding_bytes:
                return None
        del free[index]
        return block

    def _grow(self, pool: Pool, size: int, stream: int) -> Block:
        """A block in new memory; where there is none, cached segments are given back first."""
        if self._collects:
            collect_garbage(self)
        block = self._take_segment(pool, size, stream)
        if block is None and release_available(self, pool, size, stream):
            block = self._take_segment(pool, size, stream)
        if block is None:
            release_cached(self)
            self.stats.num_alloc_retries += 1
            block = self._take_segment(pool, size, stream)
        if block is None:
            self.stats.num_ooms += 1
            room = (self.limit_bytes or 0) - self.stats.reserved
            self.note("oom", room, size, stream)
            raise OutOfMemory(size, self.stats.allocated, self.stats.reserved)
        return block

    def _take_segment(self, pool: Pool, size: int, stream: int) -> Block | None:
        """A segment from the driver, or more of the expandable one (``alloc_block``)."""
        segment_size = self.settings.segment_size(size)
        allowed = self.allowed_bytes
        if allowed is not None and self.stats.reserved + segment_size > allowed:
            return None
        if self.settings.expandable_segments:
            return allocate_expandable(self, pool, size, stream)
        if not self.has_room(segment_size):
            return None
        block = Block(self.new_address(segment_size), segment_size, pool, stream)
        self.stats.segments += 1
        self.stats.reserve(segment_size)
        self.note("segment_alloc", block.address, segment_size, stream)
        return block

    def _hand_out(self, block: Block, size: int, nbytes: int) -> Block:
        """Split off what is too much, and mark the block as used (``alloc_found_block``)."""
        was_split = block.prev is not None or block.next is not None
        if self._should_split(block, size):
            rest, pool = block, block.pool
            block = Block(rest.address, size, pool, rest.stream)
            block.segment = rest.segment
            block.insert_before(rest)
            rest.address += size
            rest.size -= size
            pool.insert(rest)
            if rest.segment is None:
                if was_split:
                    self.stats.split_change(0, -size)
                else:
                    self.stats.split_change(1, rest.size)
        elif was_split and block.segment is None:
            self.stats.split_change(-1, -block.size)
        block.allocated = True
        block.requested = nbytes
        self.active[block.address] = block
        self.stats.take(block.size, nbytes)
        if self.observer is not None:
            self.observer("alloc", block.address, nbytes, block.stream)
        return block

    def _should_split(self, block: Block, size: int) -> bool:
        remaining = block.size - size
        if block.pool.is_small or self.settings.expandable_segments:
            return remaining >= MIN_BLOCK_BYTES
        limit = self.settings.max_split_bytes
        return (limit is None or size < limit) and remaining > SMALL_BYTES


def _least_room(free: list[tuple[int, int, Block]], index: int) -> int:
    """Among blocks that can grow, go on while the next one has less room to grow.

    For best fit the block at the end of an expandable segment is as large as it can become.
    """
    room = _room(free[index][2])
    while index + 1 < len(free) and _room(free[index + 1][2]) < room:
        index += 1
        room = _room(free[index][2])
    return index


def _room(block: Block) -> int:
    behind = block.next
    return block.size + (behind.size if behind is not None and not behind.mapped else 0)
