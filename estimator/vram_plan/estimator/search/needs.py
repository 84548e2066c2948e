"""What configurations need, remembered."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.overhead import (
    WORKSPACES,
    overhead_bytes,
    unlisted_workspaces,
    workspace_bytes,
)
from vram_plan.estimator.search.closed_form import Reading, extrapolate, largest_on_lines, read
from vram_plan.estimator.search.likeness import ledger_traits
from vram_plan.estimator.search.room import Need, memory_needed
from vram_plan.estimator.search.variant import varied

MARGIN_BYTES = 64 * 2**20
"""By which fewer GPUs can seem to need less, communicators aside: the padding of shards."""
_Key = tuple[object, ...]
Top = Callable[[], TrainConfig]
"""Resolves a recipe on the most GPUs it runs on with the same engine."""


class Needs:
    """Ledgers by recipe, number of GPUs, what of their kind matters, micro-batch, accumulation.

    They are kept without cuBLAS' workspaces, the same bytes at every instant (a test holds it).
    """

    def __init__(self) -> None:
        self._readings: dict[_Key, Reading] = {}
        self._needs: dict[_Key, Need] = {}
        self._lines: dict[_Key, int] = {}
        self._read: dict[_Key, list[int]] = defaultdict(list)
        self._configs: dict[_Key, TrainConfig] = {}
        self._outside: dict[_Key, int] = {}

    @property
    def computed(self) -> int:
        """Ledgers that were computed."""
        return len(self._readings)

    def of(self, recipe: int, config: TrainConfig) -> RecipeNeeds:
        """The needs of a recipe on a machine, by micro-batch and accumulation."""
        return RecipeNeeds(self, recipe, config)

    def reading(self, key: _Key, config: TrainConfig, micro_batch: int, accum: int) -> Reading:
        """The ledger's totals without workspaces."""
        full = (*key, config.gpus, micro_batch, accum)
        if full not in self._readings:
            one = varied(config, micro_batch=micro_batch, grad_accum=accum)
            found = read(memory_needed(one))
            self._readings[full] = found._replace(overhead=found.overhead - _workspaces(one))
            self._needs[full] = self._readings[full].need
            if micro_batch <= 2:
                self._configs[(*key, config.gpus)] = config
                insort(self._read[(*key, micro_batch, accum)], config.gpus)
        return self._readings[full]

    def need(self, key: _Key, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """What is needed."""
        self.reading(key, config, micro_batch, accum)
        found = self._needs[(*key, config.gpus, micro_batch, accum)]
        return found._replace(required=found.required + _workspaces(config))

    def likely(self, key: _Key, config: TrainConfig, most: int) -> int:
        """The largest micro-batch on the lines through two and three sequences.

        With one, buckets whose bytes do not grow may fill an instant that activations fill later.
        """
        assert config.gpu is not None
        full = (*key, config.gpus, config.gpu.name)
        if full not in self._lines:
            two, three = (self.reading(key, config, b, config.grad_accum) for b in (2, 3))
            one = extrapolate(two, three, 0)
            one = one._replace(overhead=one.overhead + _workspaces(config))
            self._lines[full] = largest_on_lines(config, one, two, most)
        return self._lines[full]

    def misses(self, key: _Key, config: TrainConfig, on: TrainConfig) -> int:
        """Bytes that one sequence misses at least, from what it needs on more GPUs."""
        assert config.gpu is not None
        accum = config.grad_accum
        self.reading(key, on, 1, accum)
        required = self._needs[(*key, on.gpus, 1, accum)].required
        return required + self._beside(key, config, on) - config.gpu.usable_bytes

    def on_more(self, key: _Key, config: TrainConfig, most: int, on: TrainConfig) -> int:
        """The largest micro-batch on the lines of more GPUs, at least that on these.

        What the host needs is left out: it grows with the GPUs of a machine.
        """
        assert config.gpu is not None
        beside = self._beside(key, config, on)
        full = (*key, on.gpus, config.gpu.name, beside)
        if full not in self._lines:
            one, two = (
                self.reading(key, on, b, config.grad_accum)._replace(host=0, nvme=0) for b in (1, 2)
            )
            one = one._replace(overhead=one.overhead + beside)
            self._lines[full] = largest_on_lines(config, one, two, most)
        return self._lines[full]

    def nearest(self, key: _Key, config: TrainConfig, micro_batch: int, top: Top) -> TrainConfig:
        """The configuration on the fewest GPUs, no fewer than its own, that has been read."""
        known = self._read[(*key, micro_batch, config.grad_accum)]
        place = bisect_left(known, config.gpus)
        return self._configs[(*key, known[place])] if place < len(known) else top()

    def _beside(self, key: _Key, config: TrainConfig, on: TrainConfig) -> int:
        """Bytes outside the ledger, beyond those on more GPUs, and the margin."""
        if on.gpus == config.gpus:
            return _workspaces(config)
        mine, its = (self._communicators(key, one) for one in (config, on))
        return _workspaces(config) + mine - its - MARGIN_BYTES

    def _communicators(self, key: _Key, config: TrainConfig) -> int:
        full = (*key, config.gpus)
        if full not in self._outside:
            self._outside[full] = overhead_bytes(config) - unlisted_workspaces(config)
        return self._outside[full]


def _workspaces(config: TrainConfig) -> int:
    return WORKSPACES * workspace_bytes(config)


class RecipeNeeds:
    """The needs of one recipe on one machine."""

    __slots__ = ("_config", "_key", "_needs")

    def __init__(self, needs: Needs, recipe: int, config: TrainConfig) -> None:
        self._needs = needs
        self._config = config
        self._key = (recipe, config.engine, config.pp, ledger_traits(config))

    def __call__(self, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """With a micro-batch and so many of them a step."""
        return self._needs.need(self._key, self._config, micro_batch, accum)

    def likely(self, most: int) -> int:
        """A micro-batch that is no smaller than the largest that fits, and hardly larger."""
        return self._needs.likely(self._key, self._config, most)

    def misses(self, top: Top, *, nearest: bool = True) -> int:
        """Bytes that one sequence misses at least; not above 0 where it may fit."""
        on = self._needs.nearest(self._key, self._config, 1, top) if nearest else top()
        return self._needs.misses(self._key, self._config, on)

    def on_more(self, most: int, top: Top, *, nearest: bool = True) -> int:
        """A micro-batch that is no smaller than the largest that fits."""
        on = self._needs.nearest(self._key, self._config, 2, top) if nearest else top()
        return self._needs.on_more(self._key, self._config, most, on)
