"""The caching allocator's settings, as ``PYTORCH_CUDA_ALLOC_CONF`` spells them.

Source: pytorch ``c10/core/AllocatorConfig.{h,cpp}`` and ``c10/cuda/CUDAAllocatorConfig.h``
(torch 2.13.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

__all__ = ["MIN_BLOCK_BYTES", "SMALL_BYTES", "SMALL_SEGMENT_BYTES", "AllocatorSettings"]

MIB = 2**20
MIN_BLOCK_BYTES = 512
"""kMinBlockSize: every size is a multiple of it."""
SMALL_BYTES = MIB
"""kSmallSize: the largest request of the small pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""kSmallBuffer: the segments of the small pool."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""``large_segment_size_``: the segments that requests below ``MIN_LARGE_BYTES`` share."""
MIN_LARGE_BYTES = 10 * MIB
"""kMinLargeAlloc: from here on a request has a segment of its own size …"""
ROUND_LARGE_BYTES = 2 * MIB
"""kRoundLarge: … rounded up to this."""
INTERVALS = 16
"""``roundup_power2_divisions`` has one entry for each power of two from 1 MiB to 64 GiB."""

_IGNORED = frozenset(
    {
        "pinned_use_background_threads",
        "pinned_max_round_threshold_mb",
        "pinned_max_cached_size_mb",
        "pinned_use_cuda_host_register",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_free_catch_all",
        "release_lock_on_cudamalloc",
        "graph_capture_record_stream_reuse",
        "throw_on_cudamalloc_oom",
    }
)
"""Options for host memory, locks and CUDA graphs: they change no device memory of a plain run."""
_SIZES = {
    "max_split_size_mb": "max_split_bytes",
    "max_non_split_rounding_mb": "max_non_split_rounding_bytes",
    "large_segment_size_mb": "large_segment_bytes",
}
_MODELLED = (
    *_SIZES,
    "roundup_power2_divisions",
    "garbage_collection_threshold",
    "expandable_segments",
    "per_process_memory_fraction",
    "backend",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """What decides where a request goes; the defaults are PyTorch's.

    Attributes:
        max_split_bytes: free blocks of this size or larger are never split; None: all are.
        max_non_split_rounding_bytes: by how much such a block may exceed a request it serves.
        large_segment_bytes: segments that large requests below 10 MiB share, and the pages of
            expandable segments of the large pool.
        roundup_power2_divisions: a number for each power of two from 1 MiB to 64 GiB: sizes are
            rounded up to so many steps between two powers; 0 and 1 switch it off.
        garbage_collection_threshold: share of the allowed memory above which cached blocks that
            were not used for long are given back; 0 is off. It works only with a memory fraction.
        expandable_segments: one growing segment for each stream and pool.
        memory_fraction: share of the device that the process may take; None: no such bound.
    """

    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    roundup_power2_divisions: tuple[int, ...] = ()
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    memory_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.max_split_bytes is not None and self.max_split_bytes < self.large_segment_bytes:
            raise ValueError("max_split_size_mb must be at least large_segment_size_mb (20)")
        if self.max_non_split_rounding_bytes < LARGE_SEGMENT_BYTES:
            raise ValueError("max_non_split_rounding_mb must be at least 20")
        if self.large_segment_bytes <= MIN_LARGE_BYTES:
            raise ValueError("large_segment_size_mb must be more than 10")
        if not 0 <= self.garbage_collection_threshold < 1:
            raise ValueError("garbage_collection_threshold must be between 0 and 1")
        if self.memory_fraction is not None and not 0 < self.memory_fraction <= 1:
            raise ValueError("per_process_memory_fraction must be above 0 and at most 1")
        divisions = self.roundup_power2_divisions
        if len(divisions) not in (0, INTERVALS):
            raise ValueError(f"roundup_power2_divisions needs {INTERVALS} numbers or none")
        if any(number & (number - 1) for number in divisions):
            raise ValueError("roundup_power2_divisions must be powers of two (0 switches it off)")

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """Read a ``PYTORCH_CUDA_ALLOC_CONF`` string (``key:value,key:[a:b,c:d]``).

        Raises:
            ValueError: an option that PyTorch does not know, or a value it refuses.
        """
        found: dict[str, Any] = {}
        for key, value in _pairs(text):
            if key in _IGNORED:
                continue
            if key not in _MODELLED:
                near = get_close_matches(key, [*_MODELLED, *_IGNORED], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"PYTORCH_CUDA_ALLOC_CONF: unknown option {key!r}{hint}")
            try:
                found.update(_option(key, value))
            except (TypeError, ValueError) as error:
                raise ValueError(f"PYTORCH_CUDA_ALLOC_CONF: {key}:{value}: {error}") from None
        return cls(**found)

    def round_size(self, nbytes: int) -> int:
        """Bytes of the block for a request (``round_size``)."""
        if nbytes < MIN_BLOCK_BYTES:
            return MIN_BLOCK_BYTES
        if self.roundup_power2_divisions:
            interval = min(max(nbytes.bit_length() - 21, 0), INTERVALS - 1)
            divisions = self.roundup_power2_divisions[interval]
            if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions:
                return _next_division(nbytes, divisions)
        return -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES

    def segment_size(self, size: int) -> int:
        """Bytes asked of the driver for a block of ``size`` (``get_allocation_size``)."""
        if size <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if size < MIN_LARGE_BYTES:
            return self.large_segment_bytes
        return -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def _next_division(size: int, divisions: int) -> int:
    """``roundup_power2_next_division``: 1200 with 4 divisions is 1280."""
    floor = 1 << (size.bit_length() - 1)
    if floor == size:
        return size
    step = floor >> (divisions.bit_length() - 1)
    return floor << 1 if step == 0 else -(-size // step) * step


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Option and value; commas inside brackets belong to the value."""
    depth, item = 0, ""
    for char in "".join(text.split()) + ",":
        depth += (char == "[") - (char == "]")
        if char != "," or depth > 0:
            item += char
            continue
        if item:
            key, colon, value = item.partition(":")
            if not colon or not value:
                raise ValueError(f"PYTORCH_CUDA_ALLOC_CONF: {item!r} is not option:value")
            yield key, value
        item = ""


def _option(key: str, value: str) -> dict[str, Any]:
    if key in _SIZES:
        return {_SIZES[key]: int(value) * MIB}
    if key == "roundup_power2_divisions":
        return {key: _divisions(value)}
    if key == "garbage_collection_threshold":
        return {key: _share(value)}
    if key == "per_process_memory_fraction":
        return {"memory_fraction": float(value)}
    if key == "expandable_segments":
        if value not in ("True", "False"):
            raise ValueError("expected True or False")
        return {key: value == "True"}
    if value != "native":
        raise ValueError("only PyTorch's own allocator (backend:native) is modelled")
    return {}


def _share(value: str) -> float:
    share = float(value)
    if not 0 < share < 1:
        raise ValueError("expected a number between 0 and 1")
    return share


def _divisions(value: str) -> tuple[int, ...]:
    """``4``, or ``[256:1,512:2,>:4]``: MiB up to which, and beyond which, a number holds."""
    if not value.startswith("["):
        return (int(value),) * INTERVALS
    result = [0] * INTERVALS
    last, first = 0, True
    for item in value.strip("[]").split(","):
        bound, _, number = item.partition(":")
        if bound == ">":
            result[last + 1 :] = [int(number)] * (INTERVALS - last - 1)
            continue
        mib = int(bound)
        if mib < 1 or mib & (mib - 1):
            raise ValueError("intervals must be powers of two")
        last = min(mib.bit_length() - 1, INTERVALS - 1)
        if first:
            result[:last] = [int(number)] * last
            first = False
        result[last] = int(number)
    return tuple(result)
