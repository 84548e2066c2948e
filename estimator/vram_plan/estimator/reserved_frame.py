"""The frame of a run under FSDP as the allocator sees it: what version 1 and version 2 share.

The weights are loaded, then two steps are taken of one or two micro-batches each, the segments as
in any run (`timeline`). What is gathered and reduced beside them is each version's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.overhead import workspace_bytes
from vram_plan.estimator.rank import beside_named, run_passes
from vram_plan.estimator.reserved_units import update
from vram_plan.estimator.sharding.base import Rank
from vram_plan.estimator.storages import Storages
from vram_plan.estimator.timeline import Passes, Piece

__all__ = ["ShardedRun"]

STEPS = 2
"""Optimizer states are born in the first and lie between what it left free."""


class ShardedRun(ABC):
    """Writes the timeline of one rank.

    Attributes:
        states: the rank's parts of the weights that learn.
        shards: storages of their gradients, until the update.
        held: storages that end with the forward pass.
        adds: the micro-batch is a later one of its step, whose gradients are added to.
        on_host: shards of weights, gradients and states wait in host memory.
    """

    def __init__(self, config: TrainConfig, timeline: Storages) -> None:
        self.config = config
        self.rank_passes = run_passes(config, keeps_gradients=True)
        self.rank = Rank(config=config, passes=self.rank_passes)
        self.timeline = timeline
        self.passes = Passes(timeline)
        self.states: list[Weight] = []
        self.shards: list[int] = []
        self.held: list[int] = []
        self.adds = False
        self.on_host = config.offload == "optimizer+params"
        self._workspaces = 0

    def write(self) -> None:
        """Load, then step twice; an update on the host asks the device for nothing."""
        self.load()
        for step in range(STEPS):
            for number in range(min(2, self.config.grad_accum)):
                self.adds = number > 0
                self._micro_batch()
            if not self.on_host:
                name, first = self.config.optimizer, step == 0
                update(self.timeline, name, self.states, self.shards, first=first)

    def _micro_batch(self) -> None:
        timeline, passes = self.timeline, self.rank_passes
        inputs = [timeline.take(passes.inputs // 2) for _ in range(2)]
        kept, passing = timeline.take(passes.shared), timeline.take(beside_named(passes))
        self._workspace()
        self.gather_root()
        self.passes.forward(_Order(self))
        timeline.give_all(self.held)
        timeline.give(passing)
        self._workspace()
        self.passes.backward(_Order(self))
        self.end_backward()
        timeline.give(kept)
        timeline.give_all(inputs)

    def _workspace(self) -> None:
        """The forward and the autograd thread take one each, when they first multiply."""
        if self._workspaces < 2:
            self._workspaces += 1
            self.timeline.take(workspace_bytes(self.config))

    @abstractmethod
    def load(self) -> None:
        """The model's weights come to the device and are divided."""

    @abstractmethod
    def gather_root(self) -> None:
        """What is outside the blocks is gathered for the micro-batch."""

    @abstractmethod
    def forward(self) -> Iterator[Piece]:
        """Each segment with what is gathered for it."""

    @abstractmethod
    def backward(self) -> Iterator[Piece]:
        """The same from the end, gradients reduced."""

    @abstractmethod
    def end_backward(self) -> None:
        """The last gradients are reduced, and what was gathered is let go."""


class _Order:
    """The segments as the passes run them, gathered just before."""

    def __init__(self, run: ShardedRun) -> None:
        self._run = run

    def __iter__(self) -> Iterator[Piece]:
        return self._run.forward()

    def __reversed__(self) -> Iterator[Piece]:
        return self._run.backward()
