"""Settings as ``PYTORCH_CUDA_ALLOC_CONF`` spells them.

torch 2.13.0: c10/core/AllocatorConfig.{h,cpp}, c10/cuda/CUDAAllocatorConfig.h.
"""

import pytest

from vram_plan.estimator.allocator import AllocatorSettings

MIB = 2**20


def test_parse() -> None:
    text = (
        "max_split_size_mb:80, max_non_split_rounding_mb:30, garbage_collection_threshold:0.5,"
        "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1],expandable_segments:True,"
        "pinned_use_background_threads:True,large_segment_size_mb:64,backend:native"
    )
    settings = AllocatorSettings.parse(text)
    assert settings.max_split_bytes == 80 * MIB
    assert settings.max_non_split_rounding_bytes == 30 * MIB
    assert settings.garbage_collection_threshold == 0.5
    assert settings.large_segment_bytes == 64 * MIB
    assert settings.expandable_segments
    # as pytorch's own test expects: c10/test/core/AllocatorConfig_test.cpp
    wanted = {32: 8, 64: 8, 128: 2, 256: 4, 512: 2, 1024: 4, 2048: 1, 65536: 1}
    for mib, divisions in wanted.items():
        assert settings.roundup_power2_divisions[min(mib.bit_length() - 1, 15)] == divisions
    some = AllocatorSettings.parse("roundup_power2_divisions:[128:8,256:16,512:1,2048:8,>:2]")
    assert some.roundup_power2_divisions == (8,) * 8 + (16, 1, 0, 8, 2, 2, 2, 2)
    assert AllocatorSettings.parse("expandable_segments:False,") == AllocatorSettings()
    assert AllocatorSettings.parse("") == AllocatorSettings()
    assert (
        AllocatorSettings.parse("roundup_power2_divisions:4").roundup_power2_divisions == (4,) * 16
    )
    assert AllocatorSettings.parse("per_process_memory_fraction:0.5").memory_fraction == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_split_sizes_mb:40", "did you mean max_split_size_mb"),
        ("max_split_size_mb:10", "at least large_segment_size_mb"),
        ("max_split_size_mb:20,large_segment_size_mb:25", "at least large_segment_size_mb"),
        ("max_split_size_mb:big", "max_split_size_mb:big"),
        ("max_non_split_rounding_mb:10", "at least 20"),
        ("large_segment_size_mb:10", "more than 10"),
        ("expandable_segments:yes", "True or False"),
        ("garbage_collection_threshold:1.5", "between 0 and 1"),
        ("per_process_memory_fraction:1.5", "at most 1"),
        ("roundup_power2_divisions:3", "powers of two"),
        ("roundup_power2_divisions:[48:2]", "powers of two"),
        ("backend:cudaMallocAsync", "backend:native"),
        ("expandable_segments", "not option:value"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllocatorSettings.parse(text)


def test_the_number_of_divisions() -> None:
    with pytest.raises(ValueError, match="16 numbers"):
        AllocatorSettings(roundup_power2_divisions=(4,))
