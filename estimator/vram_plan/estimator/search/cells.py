"""What can run at all: recipes on machines, resolved once for all machines that are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.likeness import gpu_traits, gpus_traits
from vram_plan.estimator.search.rent import priced_out, usd_per_hour
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.wish import Wish
from vram_plan.profiles.gpus import GpuSpec


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """A number of GPUs of one kind that may be had.

    Attributes:
        index: its place among the machines of the space.
        kind: machines of one kind refuse the same recipes.
    """

    index: int
    gpus: int
    gpu: GpuSpec | None
    usd_per_hour: float | None
    kind: Hashable


@dataclass(frozen=True, slots=True, eq=False)
class Runnable:
    """A recipe that runs on machines of one kind.

    Attributes:
        recipe: its place among the recipes of the space.
        example: resolved for one of these machines.
    """

    recipe: int
    example: TrainConfig


class Cells:
    """Machines that may be had, and the recipes that run on each.

    Attributes:
        machines: those that are not too dear.
        runnable: recipes by kind of machine.
    """

    def __init__(self, space: Space, wish: Wish, counts: tally.Tally) -> None:
        self.space = space
        self.recipes = space.recipes
        self.machines = self._machines(wish, counts)
        alike: dict[Hashable, list[Machine]] = defaultdict(list)
        for machine in self.machines:
            alike[machine.kind].append(machine)
        self.runnable = {kind: self._resolve(members, counts) for kind, members in alike.items()}

    def _machines(self, wish: Wish, counts: tally.Tally) -> tuple[Machine, ...]:
        traits, found = gpus_traits(self.space), []
        for index, (gpus, gpu) in enumerate(self.space.machines):
            dear = priced_out(wish, gpus, gpu)
            if dear:
                counts.add(dear, len(self.recipes))
                continue
            rent = usd_per_hour(gpus, gpu)
            found.append(Machine(index, gpus, gpu, rent, (traits(gpus), gpu_traits(gpu))))
        return tuple(found)

    def _resolve(self, members: list[Machine], counts: tally.Tally) -> tuple[Runnable, ...]:
        """Recipes that run on the first of some machines, and so on all of them."""
        first, found = members[0], []
        bought = {"gpus": first.gpus, "gpu": first.gpu}
        for index, recipe in enumerate(self.recipes):
            try:
                config = self.space.config(bought | recipe)
            except ValueError as error:
                counts.add(tally.refusal(str(error), first.gpu), len(members))
                continue
            found.append(Runnable(index, config))
        return tuple(found)

    def order(self, recipe: int, machine: Machine) -> int:
        """The place of a configuration in the space."""
        return recipe * self._machine_count + machine.index

    @property
    def _machine_count(self) -> int:
        return len(self.space.values("gpus", 1)) * len(self.space.values("gpu"))

    def config(self, recipe: int, machine: Machine) -> TrainConfig:
        """A configuration, resolved."""
        bought = {"gpus": machine.gpus, "gpu": machine.gpu}
        return self.space.config(bought | self.recipes[recipe])
