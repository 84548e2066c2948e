"""What a search works on, and how it reports."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.cells import Cells, Machine, Runnable
from vram_plan.estimator.search.held import Held
from vram_plan.estimator.search.needs import Needs
from vram_plan.estimator.search.speed import Kinds, Speed
from vram_plan.estimator.search.standings import Standings
from vram_plan.estimator.search.trial import Trial, choose, conclude, judge
from vram_plan.estimator.search.wish import Candidate, Wish

Outcome = Candidate | tally.Out
Settled = Iterator[tuple[Outcome, int]]
"""What became of configurations, and of how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is worked on: the space that can run, what is wanted, and what is known."""

    cells: Cells
    wish: Wish
    standings: Standings
    needs: Needs
    speed: Speed

    held: Held = field(default_factory=Held)
    known: dict[int, Kinds] = field(default_factory=dict)
    on_any: dict[Hashable, float | Outcome] = field(default_factory=dict)
    by_kind: dict[int, dict[Hashable, Runnable]] = field(default_factory=dict)
    configs: dict[tuple[int, int], TrainConfig] = field(default_factory=dict)

    @property
    def limits_batches(self) -> bool:
        """Whether some micro-batches may not be taken."""
        return self.cells.space.micro_batches is not None or self.wish.global_batch is not None

    def kinds(self, one: Runnable) -> Kinds:
        """The kinds of work and of traffic of a recipe, worked out once."""
        if id(one) not in self.known:
            config, speed = one.example, self.speed
            self.known[id(one)] = Kinds(speed.work(config), speed.traffic(config))
        return self.known[id(one)]

    def works_on(self, kind: int) -> dict[Hashable, Runnable]:
        """The kinds of work that run on machines of a kind, each with a recipe."""
        if kind not in self.by_kind:
            self.by_kind[kind] = {self.kinds(one).work: one for one in self.cells.runnable[kind]}
        return self.by_kind[kind]

    def config(self, one: Runnable, machine: Machine) -> TrainConfig:
        """A configuration, resolved."""
        key = (one.recipe, machine.index)
        if key not in self.configs:
            self.configs[key] = self.cells.config(one, machine)
        return self.configs[key]

    def judge(self, one: Runnable, machine: Machine) -> Outcome:
        """What becomes of a recipe on a machine."""
        config = self.config(one, machine)
        return judge(self.trial(one, config), self.cells.order(one.recipe, machine), config)

    def unless_beaten(self, one: Runnable, machine: Machine) -> Outcome:
        """The same, unless the floor of its own micro-batch says that it cannot be listed."""
        config = self.config(one, machine)
        trial = self.trial(one, config)
        chosen = choose(trial, config)
        if chosen is not None and chosen.room >= 0:
            floor = self.speed.at_least(config, chosen.batch, self.kinds(one))
            if floor is not None and self.standings.is_hopeless(machine, floor):
                return tally.Out(tally.BEATEN)
        return conclude(trial, self.cells.order(one.recipe, machine), config, chosen)

    def trial(self, one: Runnable, config: TrainConfig) -> Trial:
        """What a configuration of a recipe is judged by."""
        return Trial(self.cells.space, self.wish, self.needs.of(one.recipe, config), self.speed)
