"""What can run at all: recipes on machines, resolved once for all machines that are alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.complete import Complete
from vram_plan.estimator.search.likeness import (
    gpu_traits,
    gpus_traits,
    has_steady_links,
    recipe_traits,
)
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
    kind: int


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
        self._in_8_bits = "fp8" in space.values("precision")
        self.machines = self._machines(wish, counts)
        alike: dict[int, list[Machine]] = defaultdict(list)
        for machine in self.machines:
            alike[machine.kind].append(machine)
        traits_of = recipe_traits(space)
        self._traits = [traits_of(recipe) for recipe in self.recipes]
        self._resolved: dict[Hashable, Runnable | tally.Out] = {}
        self._complete = Complete(space)
        self._stretches: dict[tuple[int, int], int] = {}
        self._said: dict[tuple[str, str], tally.Out] = {}
        self.runnable = {kind: self._resolve(members, counts) for kind, members in alike.items()}
        self._ends = self._outermost(alike)

    def _machines(self, wish: Wish, counts: tally.Tally) -> tuple[Machine, ...]:
        traits, found, eight = gpus_traits(self.space), [], self._in_8_bits
        kinds: dict[Hashable, int] = {}
        for index, (gpus, gpu) in enumerate(self.space.machines):
            dear = priced_out(wish, gpus, gpu)
            if dear:
                counts.add(dear, len(self.recipes))
                continue
            rent = usd_per_hour(wish, gpus, gpu)
            kind = (traits(gpus), gpu_traits(gpu, eight=eight))
            number = kinds.setdefault(kind, len(kinds))
            found.append(Machine(index, gpus, gpu, rent, number))
        return tuple(found)

    def _resolve(self, members: list[Machine], counts: tally.Tally) -> tuple[Runnable, ...]:
        """Recipes that run on the first of some machines, and so on all of them."""
        first, found = members[0], []
        refuses = gpu_traits(first.gpu, eight=self._in_8_bits)
        for index, traits in enumerate(self._traits):
            key = (index, traits(first.gpus), refuses)
            if key not in self._resolved:
                self._resolved[key] = self._try(index, first)
            one = self._resolved[key]
            if isinstance(one, Runnable):
                found.append(one)
            else:
                counts.add(one, len(members))
        return tuple(found)

    def _try(self, recipe: int, machine: Machine) -> Runnable | tally.Out:
        try:
            options = self.recipes[recipe]
            found = self._complete.config(recipe, options, machine.gpus, machine.gpu)
            return Runnable(recipe, found)
        except ValueError as error:
            key = (str(error), machine.gpu.name if machine.gpu else "")
            if key not in self._said:
                self._said[key] = tally.refusal(key[0], machine.gpu)
            return self._said[key]

    def _outermost(
        self, alike: dict[int, list[Machine]]
    ) -> dict[Hashable, tuple[Runnable, Machine]]:
        """Where a recipe runs on the most GPUs; of a stretch, on the fewest and on the most."""
        found: dict[Hashable, tuple[Runnable, Machine]] = {}
        for kind, members in alike.items():
            by_gpus = {machine.gpus: machine for machine in members}
            for one in self.runnable[kind]:
                key = (one.recipe, one.example.engine, one.example.pp)
                for gpus, machine in by_gpus.items():
                    here = stretch(one.example, gpus)
                    for end in (key, (*key, here)):
                        if end not in found or found[end][1].gpus < gpus:
                            found[end] = (one, machine)
                    least = found.get((*key, here, 0))
                    if least is None or least[1].gpus > gpus:
                        found[*key, here, 0] = (one, machine)
        return found

    def on_most(self, config: TrainConfig, recipe: int) -> TrainConfig:
        """A recipe on the most GPUs it runs on with the engine and stages of ``config``."""
        return self._on(self._ends[recipe, config.engine, config.pp], config.gpu)

    def span(self, one: Runnable, machine: Machine) -> tuple[TrainConfig, TrainConfig]:
        """A recipe on the fewest GPUs of a machine's stretch, and on the most."""
        key = (one.recipe, one.example.engine, one.example.pp, self.stretch(one, machine))
        few, last = self._on(self._ends[*key, 0], machine.gpu), self._ends[key]
        return few, few if last[1].gpus == few.gpus else self._on(last, machine.gpu)

    def stretch(self, one: Runnable, machine: Machine) -> int:
        """The numbers of GPUs that a machine's is one of; 0 where it stands for itself."""
        key = (one.recipe, machine.index)
        if key not in self._stretches:
            found = stretch(one.example, machine.gpus)
            steady = found == NODES or has_steady_links(machine.gpu)
            self._stretches[key] = found if steady else 0
        return self._stretches[key]

    def _on(self, end: tuple[Runnable, Machine], gpu: GpuSpec | None) -> TrainConfig:
        one, machine = end
        return self._complete.on(one.example, self.recipes[one.recipe], machine.gpus, gpu)

    def order(self, recipe: int, machine: Machine) -> int:
        """The place of a configuration in the space."""
        return recipe * self._machine_count + machine.index

    @property
    def _machine_count(self) -> int:
        return len(self.space.values("gpus", 1)) * len(self.space.values("gpu"))

    def config(self, one: Runnable, machine: Machine) -> TrainConfig:
        """A recipe on a machine that it runs on."""
        recipe = self.recipes[one.recipe]
        return self._complete.on(one.example, recipe, machine.gpus, machine.gpu)


NODES = -1


def stretch(config: TrainConfig, gpus: int) -> int:
    """Equal for numbers of GPUs between which only the data ranks differ, and not by much.

    All whole numbers of nodes are one such stretch (`NODES`); inside a machine two data ranks and
    three are, and four to seven: what each sends is at most a third and a sixth more on the most.
    """
    if grows_by_nodes(config):
        return NODES
    ranks = gpus // config.tp
    alone = config.gpus > config.gpus_per_node or config.pp * config.cp * config.ep > 1
    return 0 if alone or ranks == 1 else ranks.bit_length()


def grows_by_nodes(config: TrainConfig) -> bool:
    """Whether its ranks are in several machines, and more of them only means more data ranks.

    Then the data ranks of a machine are as many on any number of machines, and what each sends
    takes no less time with more of them.
    """
    even = config.gpus_per_node % config.tp == 0
    return config.gpus > config.gpus_per_node and even and config.pp * config.cp * config.ep == 1
