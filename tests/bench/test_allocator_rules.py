"""Each rule of the caching allocator, by the function of pytorch's CUDACachingAllocator.cpp.

torch 2.13.0: c10/cuda/CUDACachingAllocator.cpp, c10/core/AllocatorConfig.{h,cpp}.
"""

import pytest

from vram_plan.estimator.allocator import (
    AllocatorSettings,
    CachingAllocator,
    OutOfMemory,
    replay,
)
from vram_plan.estimator.allocator.blocks import Block

KIB, MIB = 2**10, 2**20


def allocator(limit_mib: int | None = None, **settings: object) -> CachingAllocator:
    limit = None if limit_mib is None else limit_mib * MIB
    return CachingAllocator(AllocatorSettings(**settings), limit_bytes=limit)  # type: ignore[arg-type]  # keywords


@pytest.mark.parametrize(
    ("asked", "size"), [(1, 512), (511, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)]
)
def test_round_size(asked: int, size: int) -> None:
    assert AllocatorSettings().round_size(asked) == size


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (21 * MIB, 22 * MIB),
    ],
)
def test_get_allocation_size(size: int, segment: int) -> None:
    assert AllocatorSettings().segment_size(size) == segment
    found = allocator()
    found.malloc(size)
    assert found.stats.reserved == segment


@pytest.mark.parametrize(
    ("size", "rounded"), [(1200, 1280), (1024, 1024), (1025, 1280), (1793, 2048), (2047, 2048)]
)
def test_roundup_power2_next_division(size: int, rounded: int) -> None:
    """The source's example: 1200 with 4 divisions between 1024 and 2048 is 1280."""
    settings = AllocatorSettings(roundup_power2_divisions=(4,) * 16)
    assert settings.round_size(size * MIB) == rounded * MIB


def test_divisions_hold_from_512_bytes_times_their_number_on() -> None:
    settings = AllocatorSettings(roundup_power2_divisions=(4,) * 16)
    assert settings.round_size(2048) == 2048
    assert settings.round_size(1100) == 1536  # not above 4 · 512: multiples of 512
    assert settings.round_size(2049) == 2560


def test_get_pool_small_and_large_do_not_mix() -> None:
    found = allocator()
    large = found.malloc(2 * MIB)
    found.free(large)
    found.malloc(512)
    assert found.stats.reserved == 22 * MIB


def test_small_requests_share_a_segment() -> None:
    found = allocator()
    for _ in range(4096):
        found.malloc(512)
    assert found.stats.reserved == 2 * MIB
    found.malloc(1)
    assert found.stats.reserved == 4 * MIB


def test_get_free_block_best_fit_then_lowest_address() -> None:
    found = allocator()
    sizes = (40, 30, 30, 50)
    blocks = [found.malloc(size * MIB) for size in sizes]
    places = [block.address for block in blocks]
    for block in reversed(blocks):
        found.free(block)
    assert found.malloc(29 * MIB).address == places[1]
    assert found.malloc(30 * MIB).address == places[2]
    assert found.malloc(30 * MIB).address == places[0]


def test_streams_do_not_share_blocks() -> None:
    found = allocator()
    found.free(found.malloc(30 * MIB, stream=1))
    found.malloc(30 * MIB, stream=2)
    assert found.stats.reserved == 60 * MIB
    found.malloc(30 * MIB, stream=1)
    assert found.stats.reserved == 60 * MIB


def test_should_split_large_above_1_mib() -> None:
    found = allocator()
    found.free(found.malloc(30 * MIB))
    whole = found.malloc(29 * MIB)  # 1 MiB would remain: not more than kSmallSize
    assert whole.size == 30 * MIB
    found.free(whole)
    assert found.malloc(29 * MIB - 512).size == 29 * MIB - 512
    assert found.stats.inactive_split == MIB + 512


def test_should_split_small_from_512_bytes() -> None:
    found = allocator()
    assert found.malloc(MIB).size == MIB
    assert found.malloc(MIB - 512).size == MIB - 512
    assert found.malloc(512).size == 512
    assert found.stats.reserved == 2 * MIB


def test_try_merge_blocks() -> None:
    found = allocator()
    parts = [found.malloc(5 * MIB) for _ in range(4)]
    assert found.stats.reserved == 20 * MIB
    found.free(parts[0])
    found.free(parts[2])
    assert (found.stats.inactive_splits, found.stats.inactive_split) == (2, 10 * MIB)
    found.free(parts[1])
    assert (found.stats.inactive_splits, found.stats.inactive_split) == (1, 15 * MIB)
    assert found.malloc(15 * MIB).address == parts[0].address
    assert found.stats.inactive_splits == 0
    assert found.stats.reserved == 20 * MIB


def test_max_split_size_keeps_large_blocks_whole() -> None:
    found = allocator(max_split_bytes=40 * MIB)
    found.free(found.malloc(60 * MIB))
    found.malloc(30 * MIB)  # below the bound: a block above it does not serve it
    assert found.stats.reserved == 90 * MIB
    assert found.malloc(50 * MIB).size == 60 * MIB  # within 20 MiB: served whole
    found.free(found.malloc(70 * MIB))
    found.malloc(49 * MIB)  # 70 is 20 MiB or more above 49
    assert found.stats.reserved == 90 * MIB + 70 * MIB + 50 * MIB


def test_max_non_split_rounding() -> None:
    found = allocator(max_split_bytes=40 * MIB, max_non_split_rounding_bytes=64 * MIB)
    found.free(found.malloc(100 * MIB))
    assert found.malloc(50 * MIB).size == 100 * MIB


def test_large_segment_size() -> None:
    found = allocator(large_segment_bytes=64 * MIB)
    found.malloc(2 * MIB)
    assert found.stats.reserved == 64 * MIB


def test_release_cached_blocks_and_retry() -> None:
    found = allocator(100)
    found.free(found.malloc(60 * MIB))
    found.malloc(80 * MIB)
    assert found.stats.reserved == 80 * MIB
    assert found.stats.num_alloc_retries == 1
    assert found.stats.num_device_free == 1


def test_fragmentation_ends_in_out_of_memory() -> None:
    """A free segment that is partly in use can't be given back."""
    found = allocator(100)
    first = found.malloc(60 * MIB)
    found.free(first)
    found.malloc(20 * MIB)
    with pytest.raises(OutOfMemory, match="41,943,040 reserved but unallocated"):
        found.malloc(60 * MIB)
    assert (found.stats.num_ooms, found.stats.num_alloc_retries) == (1, 1)
    expandable = allocator(100, expandable_segments=True)
    expandable.free(expandable.malloc(60 * MIB))
    expandable.malloc(20 * MIB)
    expandable.malloc(60 * MIB)
    assert expandable.stats.reserved == 80 * MIB


def test_release_available_cached_blocks() -> None:
    """With max_split_size the smallest block that is large enough goes, the others stay."""
    found = allocator(200, max_split_bytes=20 * MIB)
    blocks = [found.malloc(size * MIB) for size in (80, 60, 50)]
    for block in blocks:
        found.free(block)
    found.malloc(22 * MIB)  # 50 would exceed it by more than 20 MiB
    assert found.stats.num_alloc_retries == 0
    assert found.stats.reserved == (80 + 60 + 22) * MIB


def test_release_available_cached_blocks_several() -> None:
    found = allocator(200, max_split_bytes=20 * MIB)
    for block in [found.malloc(50 * MIB) for _ in range(4)]:
        found.free(block)
    found.malloc(90 * MIB)
    assert found.stats.num_alloc_retries == 0
    assert found.stats.reserved == 190 * MIB


def test_memory_fraction() -> None:
    found = allocator(100, memory_fraction=0.5)
    found.malloc(40 * MIB)
    with pytest.raises(OutOfMemory):
        found.malloc(12 * MIB)


def test_garbage_collect_cached_blocks_oldest_first() -> None:
    settings = AllocatorSettings(garbage_collection_threshold=0.5, memory_fraction=1.0)
    found = CachingAllocator(settings, limit_bytes=200 * MIB)
    found.malloc(2 * MIB)
    old, young = found.malloc(50 * MIB), found.malloc(60 * MIB)
    found.free(old)
    for _ in range(5):
        found.malloc(2 * MIB)
    found.free(young)
    assert found.stats.reserved == 130 * MIB
    found.malloc(70 * MIB)  # 130 is above half of 200: what is older than the average goes
    assert found.stats.reserved == (60 + 20 + 70) * MIB
    assert found.stats.num_alloc_retries == 0


def test_garbage_collection_needs_a_fraction() -> None:
    settings = AllocatorSettings(garbage_collection_threshold=0.1)
    found = CachingAllocator(settings, limit_bytes=200 * MIB)
    found.free(found.malloc(50 * MIB))
    found.malloc(60 * MIB)
    assert found.stats.reserved == 110 * MIB


def test_empty_cache_keeps_partly_used_segments() -> None:
    found = allocator()
    used = found.malloc(2 * MIB)
    found.free(found.malloc(30 * MIB))
    found.empty_cache()
    assert found.stats.reserved == 20 * MIB
    found.free(used)
    found.empty_cache()
    assert (found.stats.reserved, found.stats.segments) == (0, 0)


def test_a_freed_block_is_not_freed_again() -> None:
    found = allocator()
    block: Block = found.malloc(1)
    found.free(block)
    with pytest.raises(ValueError, match="freed twice"):
        found.free(block)


def test_resize_makes_the_new_block_first() -> None:
    """resize_bytes_cuda allocates and copies before the old block goes."""
    result = replay([(0, 30 * MIB), (0, 10 * MIB)])
    assert result.stats.allocated == 40 * MIB
    assert result.allocated_peak_bytes == 70 * MIB


def test_replay_tells_where_it_failed() -> None:
    result = replay([(0, 30 * MIB), (1, 80 * MIB)], limit_bytes=100 * MIB)
    assert (result.outcome, result.failed_at) == ("oom", 1)
    assert result.stats.num_ooms == 1
