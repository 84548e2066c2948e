"""What configurations need, remembered."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.overhead import (
    WORKSPACES,
    overhead_bytes,
    unlisted_workspaces,
    workspace_bytes,
)
from vram_plan.estimator.search.closed_form import (
    Reading,
    along,
    at_least_with_one_more,
    largest_on_lines,
    read,
)
from vram_plan.estimator.search.largest_batch import Room, largest_from
from vram_plan.estimator.search.likeness import ledger_traits
from vram_plan.estimator.search.room import Need, memory_needed, room
from vram_plan.estimator.search.variant import varied

CHUNKED = frozenset({"fused-ce", "chunked", "liger"})
"""Losses whose rows are taken in chunks, so many of them or of such a size."""
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
            self._note(key, config, micro_batch, accum)
        return self._readings[full]

    def _note(self, key: _Key, config: TrainConfig, micro_batch: int, accum: int) -> None:
        """Where one sequence has been read, and where one and two have."""
        if micro_batch > 2:
            return
        self._configs[(*key, config.gpus)] = config
        if micro_batch == 1:
            insort(self._read[(*key, 1, accum)], config.gpus)
        if (*key, config.gpus, 3 - micro_batch, accum) in self._readings:
            insort(self._read[(*key, 2, accum)], config.gpus)

    def need(self, key: _Key, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """What is needed."""
        self.reading(key, config, micro_batch, accum)
        found = self._needs[(*key, config.gpus, micro_batch, accum)]
        return found._replace(required=found.required + _workspaces(config))

    def guess(self, key: _Key, config: TrainConfig, most: int) -> int:
        """The largest micro-batch if more sequences take what a second one takes on other GPUs."""
        accum = config.grad_accum
        own, known = self.reading(key, config, 1, accum), self._read[(*key, 2, accum)]
        if known:
            gpus = known[min(bisect_left(known, config.gpus), len(known) - 1)]
            low, high = (self._readings[(*key, gpus, b, accum)] for b in (1, 2))
        else:
            low, high = own, self.reading(key, config, 2, accum)
        one, two = (along(own, low, high, more) for more in (0, 1))
        one = one._replace(overhead=one.overhead + _workspaces(config))
        return largest_on_lines(config, one, two, most)

    def ends(self, key: _Key, config: TrainConfig, micro_batch: int) -> bool:
        """Whether one sequence more certainly misses, by what one and so many need."""
        if micro_batch == 1 or config.loss in CHUNKED:
            return False
        low, high = (self.reading(key, config, b, config.grad_accum) for b in (1, micro_batch))
        high = high._replace(overhead=high.overhead + _workspaces(config))
        return room(config, at_least_with_one_more(config, low, high, micro_batch)) < 0

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

    def largest(self, left: Room, most: int) -> int:
        """One sequence is read, what the line makes of it, seldom one beside that."""
        if left(1) < 0:
            return 0
        guess = self._needs.guess(self._key, self._config, most)
        ends = partial(self._needs.ends, self._key, self._config)
        return largest_from(1, left, most, guess, ends)

    def misses(self, top: Top, *, nearest: bool = True) -> int:
        """Bytes that one sequence misses at least; not above 0 where it may fit."""
        on = self._needs.nearest(self._key, self._config, 1, top) if nearest else top()
        return self._needs.misses(self._key, self._config, on)

    def on_more(self, most: int, top: Top, *, nearest: bool = True) -> int:
        """A micro-batch that is no smaller than the largest that fits."""
        on = self._needs.nearest(self._key, self._config, 2, top) if nearest else top()
        return self._needs.on_more(self._key, self._config, most, on)
