"""What configurations need, remembered."""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.overhead import overhead_bytes
from vram_plan.estimator.search.closed_form import Reading, largest_on_lines, read
from vram_plan.estimator.search.likeness import memory_traits
from vram_plan.estimator.search.room import Need, memory_needed

MARGIN_BYTES = 64 * 2**20
"""By which fewer GPUs can seem to need less: the padding of shards."""
_Key = tuple[object, ...]


class Needs:
    """Ledgers by recipe, number of GPUs, what of their kind matters, micro-batch, accumulation."""

    def __init__(self) -> None:
        self._readings: dict[_Key, Reading] = {}
        self._needs: dict[_Key, Need] = {}
        self._single: dict[_Key, tuple[int, int]] = {}
        self._likely: dict[_Key, int] = {}
        self._seen: dict[_Key, tuple[int, int]] = {}

    @property
    def computed(self) -> int:
        """Ledgers that were computed."""
        return len(self._readings)

    def of(self, recipe: int, config: TrainConfig) -> RecipeNeeds:
        """The needs of a recipe on a machine, by micro-batch and accumulation."""
        return RecipeNeeds(self, recipe, config)

    def reading(self, key: _Key, config: TrainConfig, micro_batch: int, accum: int) -> Reading:
        """The ledger's totals."""
        full = (*key, config.gpus, micro_batch, accum)
        if full not in self._readings:
            one = replace(config, micro_batch=micro_batch, grad_accum=accum)
            self._readings[full] = found = read(memory_needed(one))
            self._needs[full] = found.need
            if micro_batch == 1:
                self._remember(key, one, found.need.required)
        return self._readings[full]

    def need(self, key: _Key, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """What is needed."""
        full = (*key, config.gpus, micro_batch, accum)
        if full not in self._needs:
            self.reading(key, config, micro_batch, accum)
        return self._needs[full]

    def _remember(self, key: _Key, config: TrainConfig, required: int) -> None:
        """What one sequence needs on the most GPUs seen: fewer of them never need less."""
        known = self._single.get(key, (0, 0))
        self._single[key] = max(known, (config.gpus, required - overhead_bytes(config)))

    def likely(self, key: _Key, config: TrainConfig, most: int) -> int:
        """The largest micro-batch on the lines through one and two sequences."""
        assert config.gpu is not None
        place = (key, config.gpu.name)
        full = (*place, config.gpus)
        if full not in self._likely:
            one, two = (self.reading(key, config, b, config.grad_accum) for b in (1, 2))
            found = largest_on_lines(config, one, two, most)
            self._likely[full] = found
            gpus, _ = self._seen.get(place, (0, 0))
            if config.gpus > gpus:
                self._seen[place] = (config.gpus, found)
        return self._likely[full]

    def seen(self, key: _Key, config: TrainConfig) -> int:
        """The largest micro-batch on more GPUs of the kind, at least that on these; 0: unknown."""
        assert config.gpu is not None
        gpus, found = self._seen.get((key, config.gpu.name), (0, 0))
        return found if gpus > config.gpus else 0

    def misses(self, key: _Key, config: TrainConfig) -> int:
        """Bytes that one sequence misses at least, from what it needs on more GPUs; 0: unknown."""
        gpus, required = self._single.get(key, (0, 0))
        if gpus <= config.gpus or config.gpu is None:
            return 0
        return required + overhead_bytes(config) - MARGIN_BYTES - config.gpu.usable_bytes


class RecipeNeeds:
    """The needs of one recipe on one machine."""

    __slots__ = ("_config", "_key", "_needs")

    def __init__(self, needs: Needs, recipe: int, config: TrainConfig) -> None:
        self._needs = needs
        self._config = config
        self._key = (recipe, config.engine, memory_traits(config))

    def __call__(self, config: TrainConfig, micro_batch: int, accum: int) -> Need:
        """With a micro-batch and so many of them a step."""
        return self._needs.need(self._key, self._config, micro_batch, accum)

    def likely(self, most: int) -> int:
        """A micro-batch that is no smaller than the largest that fits, and hardly larger."""
        return self._needs.likely(self._key, self._config, most)

    def seen(self) -> int:
        """A micro-batch that fits on more GPUs and so none larger fits here; 0: unknown."""
        return self._needs.seen(self._key, self._config)

    def misses(self) -> int:
        """Bytes that one sequence misses at least, as far as is known; 0: unknown."""
        return self._needs.misses(self._key, self._config)
