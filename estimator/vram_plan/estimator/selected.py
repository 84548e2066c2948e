"""Selective checkpointing: results of matrix products and attention that a block keeps.

``create_selective_checkpoint_contexts`` (torch 2.13.0 ``torch/utils/checkpoint.py``): going
forward, ``_CachingTorchDispatchMode`` keeps every output of the listed operators, whether autograd
needs it or not; running again, ``_CachedTorchDispatchMode`` hands each out once, in order, and
lets go of it. What recomputation does not come to (it stops early) stays until the block's graph
is gone: the hooks of its saved tensors name the frame, and that the cache.
"""

from __future__ import annotations

from collections import deque

from vram_plan.estimator.tensors import Storage


class Selected:
    """The cache of one block.

    Args:
        alternates: of the matrix products only the first, third, … are listed.
    """

    __slots__ = ("_alternates", "_kept", "_products", "replays", "unread")

    def __init__(self, *, alternates: bool = False) -> None:
        self._kept: deque[Storage | None] = deque()
        self._alternates = alternates
        self._products = [0, 0]
        self.unread = 0
        self.replays = False

    def skips_product(self) -> bool:
        """Whether the policy leaves the next matrix product out; it counts both ways apart."""
        self._products[self.replays] += 1
        return self._alternates and self._products[self.replays] % 2 == 0

    def keep(self, storage: Storage | None) -> None:
        """Remember a listed operator's output; going forward."""
        self._kept.append(storage)

    def again(self) -> Storage | None:
        """The next output, which the cache lets go of; running again."""
        return self._kept.popleft()

    def clear(self) -> None:
        """Let go of what was not asked for (``unread`` bytes): the block's graph is gone."""
        self.unread = sum(storage.nbytes for storage in self._kept if storage is not None)
        self._kept.clear()
