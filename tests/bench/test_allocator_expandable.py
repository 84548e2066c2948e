"""Expandable segments: pages are mapped as they are needed and given back one by one.

pytorch c10/cuda/CUDACachingAllocator.cpp (torch 2.13.0), Note [Expandable Segments].
"""

from vram_plan.estimator.allocator import AllocatorSettings, CachingAllocator

MIB = 2**20


def allocator() -> CachingAllocator:
    return CachingAllocator(AllocatorSettings(expandable_segments=True))


def test_expandable_pages() -> None:
    """2 MiB pages in the small pool, 20 MiB pages in the large one (Note [Expandable Segments])."""
    found = allocator()
    found.malloc(512)
    assert found.stats.reserved == 2 * MIB
    found.malloc(21 * MIB)
    assert found.stats.reserved == 42 * MIB
    found.malloc(19 * MIB)
    assert found.stats.reserved == 42 * MIB
    assert len(found.segments) == 2


def test_expandable_block_at_the_end_grows() -> None:
    found = allocator()
    first = found.malloc(20 * MIB)
    found.free(found.malloc(30 * MIB))
    larger = found.malloc(50 * MIB)
    assert larger.address == first.address + 20 * MIB
    assert found.stats.reserved == 80 * MIB


def test_expandable_best_fit_counts_room_to_grow() -> None:
    """A hole that fits is taken before the end of the segment, though that is smaller now."""
    found = allocator()
    hole = found.malloc(15 * MIB).address
    found.malloc(13 * MIB)
    assert found.stats.reserved == 40 * MIB  # 12 MiB are free at the end
    found.free(found.active[hole])
    assert found.malloc(11 * MIB).address == hole


def test_expandable_splits_large_blocks_from_512_bytes_on() -> None:
    found = allocator()
    assert found.malloc(20 * MIB - 512).size == 20 * MIB - 512
    assert found.stats.inactive_split == 0  # not counted in expandable segments


def test_unmap_block_gives_back_whole_pages() -> None:
    found = allocator()
    held = found.malloc(5 * MIB)
    freed = found.malloc(70 * MIB)
    place = freed.address
    found.free(freed)
    found.empty_cache()
    assert found.stats.reserved == 20 * MIB
    again = found.malloc(70 * MIB)
    assert again.address == place
    found.free(held)
    found.free(again)
    found.empty_cache()
    assert found.stats.reserved == 0
    assert found.segments == []


def test_gaps_of_unmapped_pages_are_filled_first() -> None:
    """find_expandable_block: the lowest addresses with room."""
    found = allocator()
    low = found.malloc(40 * MIB)
    place = low.address
    found.malloc(20 * MIB)
    found.free(low)
    found.empty_cache()
    assert found.malloc(30 * MIB).address == place
