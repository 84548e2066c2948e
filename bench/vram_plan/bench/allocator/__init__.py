"""A trace replayed through the model of PyTorch's caching allocator: reserved memory.

The model itself is plain arithmetic and lives with the closed form, which uses it too
(``vram_plan.estimator.allocator``).
"""

from vram_plan.bench.allocator.deep import deep_changes, replay_deep
from vram_plan.bench.allocator.timeline import changes_of, replay, replay_trace, whole_timeline
from vram_plan.estimator.allocator import (
    AllocatorSettings,
    CachingAllocator,
    OutOfMemory,
    Replay,
    Replayer,
    Statistics,
)

__all__ = [
    "AllocatorSettings",
    "CachingAllocator",
    "OutOfMemory",
    "Replay",
    "Replayer",
    "Statistics",
    "changes_of",
    "deep_changes",
    "replay",
    "replay_deep",
    "replay_trace",
    "whole_timeline",
]
