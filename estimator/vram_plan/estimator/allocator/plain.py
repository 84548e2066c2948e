"""The same allocator at PyTorch's default settings, on whole numbers: fast enough for many.

Without settings the small and the large pool of each stream never meet, unless the device is full,
so each takes its requests one after another whatever the others do. A free block is one number, its
size before its address, in a sorted list: the best fit is the first that is not below the request.
That every figure equals that of ``caching.CachingAllocator`` is tested.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from typing import Any

from vram_plan.estimator.allocator.caching import OutOfMemory
from vram_plan.estimator.allocator.settings import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    MIN_LARGE_BYTES,
    ROUND_LARGE_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
)

__all__ = ["BITS", "SMALL_UNITS", "Op", "PlainAllocator", "PlainPool", "units_of"]

BITS = 40
"""Of a free block's number: the address, in units of 512 bytes; above it stands the size."""
_ADDRESS = (1 << BITS) - 1
SMALL_UNITS = SMALL_BYTES // MIN_BLOCK_BYTES
"""The largest request of the small pool."""

Op = tuple[int, int]
"""A storage's number, and its units above the address bits; 0 frees it, a negative number is one
that is freed before the pool is asked again."""
Spot = list[Any]
"""A block: its number, its neighbours, whether it is free."""


def units_of(nbytes: int) -> int:
    """What a request takes, in units of 512 bytes."""
    return (nbytes + MIN_BLOCK_BYTES - 1) // MIN_BLOCK_BYTES


class PlainPool:
    """The blocks of one pool of one stream.

    Args:
        small: the small pool.
        grow: told of the units of a segment before it is taken.
    """

    __slots__ = ("_at", "_end", "_free", "_grow", "_next", "_slack", "_small")

    def __init__(self, *, small: bool, grow: Callable[[int], None]) -> None:
        self._small = small
        self._grow = grow
        self._slack = (
            1 if small else SMALL_UNITS + 1
        ) << BITS  # from here on the rest is split off
        self._free: list[int] = []
        self._at: dict[int, Spot] = {}
        self._end: Spot = [0, None, None, 0]
        self._next = 0

    def run(self, ops: Iterable[Op], spots: dict[int, Spot] | list[Spot]) -> None:
        """Serve requests; ``spots`` has the block of each storage.

        One long function, as a call for each request would take longer than the request.
        """
        free, at, slack = self._free, self._at, self._slack
        first, insert, fetch = bisect_left, insort, free.pop
        for number, wanted in ops:
            if wanted > 0:
                try:
                    key = fetch(first(free, wanted))
                except IndexError:
                    key = self._segment(wanted)
                spots[number] = spot = at[key & _ADDRESS]
                spot[3] = 0
                rest = key - wanted
                if rest >= slack:
                    rest += wanted >> BITS
                    behind = spot[2]
                    spot[0] = wanted | key & _ADDRESS
                    behind[1] = spot[2] = at[rest & _ADDRESS] = [rest, spot, behind, 1]
                    insert(free, rest)
            elif wanted:
                self._pass_by(-wanted)
            else:
                spot = spots[number]
                key, before, behind, _ = spot
                if behind[3]:
                    other = behind[0]
                    del free[first(free, other)]
                    address = other & _ADDRESS
                    del at[address]
                    spot[0] = key = key + other - address
                    spot[2] = behind = behind[2]
                    behind[1] = spot
                if before[3]:
                    other = before[0]
                    del free[first(free, other)]
                    address = key & _ADDRESS
                    del at[address]
                    before[0] = key = key + other - address
                    before[2] = behind
                    behind[1] = before
                else:
                    spot[3] = 1
                insert(free, key)

    def _pass_by(self, wanted: int) -> None:
        """A request that is freed before another comes: at most a segment is left of it."""
        if not self._free or self._free[-1] < wanted:
            key = self._segment(wanted)
            self._at[key & _ADDRESS][3] = 1
            insort(self._free, key)

    def _segment(self, wanted: int) -> int:
        """A new segment for a request, as one block that is not in the list."""
        units = wanted >> BITS
        size = _segment_units(units)
        self._grow(size)
        key = size << BITS | self._next
        self._at[self._next] = [key, self._end, self._end, 0]
        self._next += size
        return key

    def release(self) -> int:
        """Give back every segment that is wholly free; their units."""
        end, whole = self._end, []
        for key in self._free:
            spot = self._at[key & _ADDRESS]
            if spot[1] is end and spot[2] is end:
                whole.append(key)
        for key in whole:
            self._free.remove(key)
            del self._at[key & _ADDRESS]
        return sum(key >> BITS for key in whole)

    def close(self) -> None:
        """Untie the blocks, which name each other."""
        for spot in self._at.values():
            spot.clear()
        self._end.clear()


def _segment_units(units: int) -> int:
    """``AllocatorSettings.segment_size`` at the default settings."""
    size = units * MIN_BLOCK_BYTES
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES // MIN_BLOCK_BYTES
    if size < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES // MIN_BLOCK_BYTES
    step = ROUND_LARGE_BYTES // MIN_BLOCK_BYTES
    return -(-units // step) * step


class PlainAllocator:
    """The pools of one device.

    Args:
        limit_bytes: what the driver can hand out; None: everything asked for.
        gives_back: at the limit, segments that nothing uses go first; else the limit is an end.
    """

    __slots__ = ("_gives_back", "_limit", "_pools", "_reserved", "reserved_peak")

    def __init__(self, limit_bytes: int | None = None, *, gives_back: bool = True) -> None:
        self._limit = None if limit_bytes is None else limit_bytes // MIN_BLOCK_BYTES
        self._gives_back = gives_back
        self._pools: dict[tuple[bool, int], PlainPool] = {}
        self._reserved = 0
        self.reserved_peak = 0

    @property
    def reserved_peak_bytes(self) -> int:
        """``torch.cuda.max_memory_reserved``."""
        return self.reserved_peak * MIN_BLOCK_BYTES

    def pool(self, small: bool, stream: int) -> PlainPool:  # called often
        """The small or the large pool of a stream."""
        found = self._pools.get((small, stream))
        if found is None:
            found = self._pools[small, stream] = PlainPool(small=small, grow=self._grow)
        return found

    def close(self) -> None:
        """Untie every block; the allocator is used no more."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _grow(self, units: int) -> None:
        """A segment is about to be taken.

        Raises:
            OutOfMemory: at the limit, where nothing can be given back or nothing is to be.
        """
        limit = self._limit
        if limit is not None and self._reserved + units > limit:
            if self._gives_back:
                self._reserved -= sum(pool.release() for pool in self._pools.values())
            if self._reserved + units > limit:
                raise OutOfMemory(units * MIN_BLOCK_BYTES, 0, self._reserved * MIN_BLOCK_BYTES)
        self._reserved += units
        self.reserved_peak = max(self.reserved_peak, self._reserved)
