"""What a rank holds at least, told by its passes alone: bounds the micro-batch without a ledger.

While a pass goes forward its own tensors are there whatever an engine adds to them, and so are the
weights where every data rank has all of them. Bytes are convex in the micro-batch
(``closed_form``), so the line through one sequence and two never lies above them. Gradients,
states, buffers and fragmentation are left out. A test holds it to the ledger.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Ledger
from vram_plan.estimator.overhead import overhead_bytes
from vram_plan.estimator.rank import Passes
from vram_plan.estimator.search.alike import passes_of, undivided
from vram_plan.estimator.sharding.base import Rank, input_entries, weights_entries
from vram_plan.estimator.step import FORWARD, LOSS

_Lines = tuple[tuple[int, int], ...]
"""Bytes of one sequence, and of each one more, for every instant of the forward pass."""


class Bound(NamedTuple):
    """Bytes that one sequence misses at least (not above 0 where it may fit); the most that fit."""

    missing: int
    most: int


class Held:
    """Bytes of the forward pass, by recipe and engine."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], _Lines] = {}
        self._by_passes: dict[Hashable, tuple[Passes, _Lines]] = {}

    def bound(self, recipe: int, config: TrainConfig, limit: int) -> Bound:
        """What one sequence misses, and the most sequences that there is room for."""
        assert config.gpu is not None
        space = config.gpu.usable_bytes - overhead_bytes(config)
        missing, most = -space, limit
        for one, more in self._lines(recipe, config):
            missing = max(missing, one - space)
            if more > 0:
                most = min(most, 1 + (space - one) // more)
        return Bound(missing, most)

    def _lines(self, recipe: int, config: TrainConfig) -> _Lines:
        if config.pp > 1:  # a stage has a part of the passes
            return ()
        key = (recipe, config.engine)
        if key not in self._known:
            self._known[key] = self._of(undivided(config), whole=_has_whole_weights(config))
        return self._known[key]

    def _of(self, config: TrainConfig, *, whole: bool) -> _Lines:
        passes = passes_of(config, 1)
        key = (id(passes), whole)
        if key not in self._by_passes:
            one = _forward(config, passes, whole=whole)
            two = _forward(config, passes_of(config, 2), whole=whole)
            lines = tuple((one[instant], two[instant] - one[instant]) for instant in one)
            self._by_passes[key] = (passes, lines)
        return self._by_passes[key][1]


def _has_whole_weights(config: TrainConfig) -> bool:
    """Whether a rank's weights are those that its passes read."""
    if config.engine == "deepspeed":
        return config.zero != 3
    return config.engine in {"torch", "ddp", "megatron"}


def _forward(config: TrainConfig, passes: Passes, *, whole: bool) -> dict[str, int]:
    """Bytes at the instants of the forward pass."""
    rank = Rank(config=config, passes=passes)
    weights = weights_entries(rank) if whole else []
    entries = [*weights, *input_entries(rank), *passes.entries]
    return Ledger((FORWARD, LOSS), entries).totals()
