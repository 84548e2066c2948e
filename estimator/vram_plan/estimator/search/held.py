"""What a rank holds at least, without a ledger: bounds the micro-batch, and says what cannot fit.

While a pass goes forward its own tensors are there whatever an engine adds to them, and so is what
an engine holds all along: weights or shards, states, buffers. Bytes are convex in the micro-batch
(``closed_form``), so the line through one sequence and two never lies above them. At the optimizer
step there is what the engine holds then, whatever the batch. Of several numbers of GPUs the states
are those of the most, which are the least but for padding. What an engine adds to the passes and
fragmentation are left out. A test holds it to the ledger.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields
from operator import attrgetter
from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry, Ledger
from vram_plan.estimator.overhead import WORKSPACES, overhead_bytes, workspace_bytes
from vram_plan.estimator.planner import engine_of
from vram_plan.estimator.rank import Passes
from vram_plan.estimator.search.alike import passes_of, undivided
from vram_plan.estimator.search.likeness import ledger_traits
from vram_plan.estimator.search.needs import MARGIN_BYTES
from vram_plan.estimator.sharding.base import STEP_INSTANTS, Rank, input_entries
from vram_plan.estimator.speed.payload import fullest_rank
from vram_plan.estimator.step import FORWARD, LOSS

_Lines = tuple[tuple[int, int], ...]
"""Bytes of one sequence, and of each one more, for every instant of the forward pass."""
_IDLE = frozenset(
    {
        "micro_batch",
        "seq_len",
        "source_len",
        "lengths",
        "loss",
        "checkpointing",
        "offload",
        "assumptions",
        "gpu",
        "node",
    }
)
_OTHERS = attrgetter(*(one.name for one in fields(TrainConfig) if one.name not in _IDLE))
"""What states depend on beside where they are kept, and the traits of the kind of GPU."""


class Bound(NamedTuple):
    """Bytes that one sequence misses at least (not above 0 where it may fit); the most that fit."""

    missing: int
    most: int


class _States(NamedTuple):
    """Bytes that an engine holds all along, and at the fullest instant of the update."""

    always: int
    step: int


class Held:
    """Bytes of the forward pass and of states, by recipe and engine."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], _Lines] = {}
        self._by_passes: dict[int, tuple[Passes, _Lines]] = {}
        self._beside: dict[Hashable, int] = {}
        self._states: dict[Hashable, _States] = {}
        self._alike: dict[Hashable, _States] = {}

    def bound(self, recipe: int, config: TrainConfig, limit: int, most: TrainConfig) -> Bound:
        """What one sequence misses, and the most sequences that there is room for.

        Args:
            recipe: tells configurations from those of other recipes.
            config: on the fewest GPUs of some.
            limit: no more sequences are asked for.
            most: on the most of them.
        """
        assert config.gpu is not None
        space = config.gpu.usable_bytes - self._outside(recipe, config)
        if config.pp > 1:  # a stage has a part of the passes
            return Bound(-space, limit)
        if most.gpus != config.gpus:
            space += MARGIN_BYTES
        states = self._of_states(recipe, most)
        missing, left, sequences = states.step - space, space - states.always, limit
        for one, more in self._lines(recipe, config):
            missing = max(missing, one - left)
            if more > 0:
                sequences = min(sequences, 1 + (left - one) // more)
        return Bound(missing, sequences)

    def _outside(self, recipe: int, config: TrainConfig) -> int:
        """Bytes beside the ledger, and the workspaces."""
        key = (recipe, config.engine, config.gpus, config.pp)
        if key not in self._beside:
            self._beside[key] = overhead_bytes(config)
        return self._beside[key] + WORKSPACES * workspace_bytes(config)

    def _lines(self, recipe: int, config: TrainConfig) -> _Lines:
        key = (recipe, config.engine)
        if key not in self._known:
            self._known[key] = self._of(undivided(config))
        return self._known[key]

    def _of(self, config: TrainConfig) -> _Lines:
        passes = passes_of(config, 1)
        if id(passes) not in self._by_passes:
            one, two = (_forward(config, p) for p in (passes, passes_of(config, 2)))
            lines = tuple((one[instant], two[instant] - one[instant]) for instant in one)
            self._by_passes[id(passes)] = (passes, lines)
        return self._by_passes[id(passes)][1]

    def _of_states(self, recipe: int, config: TrainConfig) -> _States:
        key = (recipe, config.engine, config.gpus, config.gpus_per_node, ledger_traits(config))
        if key not in self._states:
            moves = config.offload if config.offload != "activations" else "none"
            others = (moves, _OTHERS(config), key[-1])
            if others not in self._alike:
                self._alike[others] = _states(config)
            self._states[key] = self._alike[others]
        return self._states[key]


def _states(config: TrainConfig) -> _States:
    """What is held beside the passes, told by the weights alone."""
    engine = engine_of(config)
    entries = getattr(engine, "resident", engine.entries)
    found = entries(fullest_rank(config))
    held = [entry for entry in found if entry.place == "device"]
    always = sum(entry.bytes for entry in held if not entry.alive)
    step = Ledger(STEP_INSTANTS, held).totals()
    return _States(always, max(step.values()))


def _forward(config: TrainConfig, passes: Passes) -> dict[str, int]:
    """Bytes at the instants of the forward pass."""
    entries: Iterable[Entry] = (*input_entries(Rank(config=config, passes=passes)), *passes.entries)
    return Ledger((FORWARD, LOSS), entries).totals()
