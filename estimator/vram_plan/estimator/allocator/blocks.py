"""Blocks of device memory, and the pools that keep the free ones in order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

__all__ = ["Block", "Pool", "Segment"]


class Segment:
    """An expandable segment: reserved addresses, backed by memory page by page."""

    __slots__ = ("address", "page", "size", "stream")

    def __init__(self, address: int, size: int, page: int, stream: int) -> None:
        self.address = address
        self.page = page
        self.size = size
        self.stream = stream


class Block:
    """A piece of a segment; neighbours are linked.

    Attributes:
        address: where it begins.
        size: its bytes.
        requested: bytes the program asked for.
        allocated: handed out.
        mapped: backed by memory; always, outside expandable segments.
        prev: the block before it in its segment.
        next: the block behind it.
        pool: its pool.
        stream: only requests of this stream are served from it.
        segment: the expandable segment it is part of.
        born: the pool's number of searches when it became free.
    """

    __slots__ = (
        "address",
        "allocated",
        "born",
        "mapped",
        "next",
        "pool",
        "prev",
        "requested",
        "segment",
        "size",
        "stream",
    )

    def __init__(self, address: int, size: int, pool: Pool, stream: int) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.stream = stream
        self.requested = 0
        self.allocated = False
        self.mapped = True
        self.prev: Block | None = None
        self.next: Block | None = None
        self.segment: Segment | None = None
        self.born = 0

    @property
    def is_split(self) -> bool:
        """Whether it shares its segment with other blocks."""
        return self.prev is not None or self.next is not None

    def insert_after(self, before: Block) -> None:
        """Take the place behind ``before``."""
        self.prev, self.next = before, before.next
        if self.next is not None:
            self.next.prev = self
        before.next = self

    def insert_before(self, after: Block) -> None:
        """Take the place before ``after``."""
        self.prev, self.next = after.prev, after
        if self.prev is not None:
            self.prev.next = self
        after.prev = self


class Pool:
    """Free blocks, for each stream by size and then by address (``BlockComparatorSize``)."""

    __slots__ = ("free", "is_small", "searches", "unmapped", "unmapped_blocks")

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.free: dict[int, list[tuple[int, int, Block]]] = {}
        self.unmapped: dict[int, list[int]] = {}
        self.unmapped_blocks: dict[int, Block] = {}
        self.searches = 0

    def insert(self, block: Block) -> None:
        """Take up a free block."""
        block.born = self.searches
        place = (block.size, block.address, block)
        try:
            insort(self.free[block.stream], place)
        except KeyError:
            self.free[block.stream] = [place]

    def remove(self, block: Block) -> None:
        """Hand a free block out, or let it merge."""
        free = self.free[block.stream]
        del free[bisect_left(free, (block.size, block.address))]

    def insert_unmapped(self, block: Block) -> None:
        """Take up a stretch of addresses without memory."""
        insort(self.unmapped.setdefault(block.stream, []), block.address)
        self.unmapped_blocks[block.address] = block

    def remove_unmapped(self, block: Block) -> None:
        """Let go of such a stretch."""
        addresses = self.unmapped[block.stream]
        del addresses[bisect_left(addresses, block.address)]
        del self.unmapped_blocks[block.address]

    def in_order(self) -> Iterator[Block]:
        """The free blocks by stream, size and address, as they are now."""
        for stream in sorted(self.free):
            for _, _, block in list(self.free[stream]):
                yield block
