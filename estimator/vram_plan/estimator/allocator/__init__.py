"""A model of PyTorch's caching allocator: what a timeline of tensors makes it reserve."""

from vram_plan.estimator.allocator.caching import CachingAllocator, OutOfMemory
from vram_plan.estimator.allocator.replay import Change, Replay, Replayer, replay
from vram_plan.estimator.allocator.settings import AllocatorSettings
from vram_plan.estimator.allocator.statistics import Statistics

__all__ = [
    "AllocatorSettings",
    "CachingAllocator",
    "Change",
    "OutOfMemory",
    "Replay",
    "Replayer",
    "Statistics",
    "replay",
]
