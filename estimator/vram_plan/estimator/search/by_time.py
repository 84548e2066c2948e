"""The fastest or cheapest plans: machines by what they can do at best, recipes likewise.

Floors get nearer the more they cost: the operations at the peak for every machine; the kernels'
least seconds per sequence for machines that are still in; traffic, optimizer and an upper bound of
the micro-batch for single configurations; then the plan itself. On one machine the cheapest plan is
the fastest, so a machine is done when its fastest is found, and a machine whose floor is beaten in
both cost and time needs no look at all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from heapq import heappop, heappush

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.cells import NODES, Machine, Runnable
from vram_plan.estimator.search.task import Outcome, Settled, Task
from vram_plan.estimator.search.trial import MOST_SEQUENCES, Batch, batches, describe
from vram_plan.profiles.gpus import GpuSpec

Floor = Callable[[TrainConfig, GpuSpec, Hashable], float]
_Spanning = Callable[[Task, Runnable, TrainConfig, TrainConfig], float | Outcome]


def by_time(task: Task) -> Settled:
    """First what the objective ranks best, then what else can be on the front."""
    rough, least = (_Floors(task, floor) for floor in (task.speed.rough, task.speed.least))
    waiting = sorted(task.cells.machines, key=rough.worth)
    while waiting and not task.standings.is_beaten(rough.worth(waiting[0])):
        yield from _look(task, waiting.pop(0), rough, least)
    for machine in sorted(waiting, key=rough.corner):
        yield from _look(task, machine, rough, least)


def _look(task: Task, machine: Machine, rough: _Floors, least: _Floors) -> Settled:
    """Recipes on a machine: the least floor gives way to a nearer one, or is settled."""
    left = len(task.cells.runnable[machine.kind])
    for floors in (rough, least):
        if task.standings.is_hopeless(machine, floors.best(machine) / machine.gpus):
            yield tally.Out(tally.BEATEN), left
            return
    heap = [(floor / machine.gpus, 0, one.recipe, one) for one, floor in least.of(machine)]
    while heap:  # sorted, and so a heap
        floor, level, recipe, one = heappop(heap)
        if task.standings.is_hopeless(machine, floor):
            break
        found = _NEARER[level](task, one, machine)
        if isinstance(found, float):
            heappush(heap, (max(found, floor), level + 1, recipe, one))
        else:
            left -= 1
            yield found, 1
    yield tally.Out(tally.BEATEN), left


def _as_passes_allow(task: Task, one: Runnable, machine: Machine) -> float | Outcome:
    """Seconds per token at least with what the passes alone leave room for."""
    if task.limits_batches:
        return 0.0
    if task.cells.stretch(one, machine):
        return _on_any(task, one, machine, _by_passes)
    return _here(task, one, machine)


def _as_on_any(task: Task, one: Runnable, machine: Machine) -> float | Outcome:
    """On several nodes with what the ledger of the most leaves room for; else on just this one."""
    stretch = 0 if task.limits_batches else task.cells.stretch(one, machine)
    if stretch == NODES:
        return _on_any(task, one, machine, _by_ledger)
    return _here(task, one, machine) if stretch else 0.0


def _here(task: Task, one: Runnable, machine: Machine) -> float | Outcome:
    config = task.config(one, machine)
    return _by_passes(task, one, config, config)


def _on_any(task: Task, one: Runnable, machine: Machine, floor: _Spanning) -> float | Outcome:
    """A floor of whatever number of GPUs in a stretch, worked out once for all of them."""
    assert machine.gpu is not None
    stretch = task.cells.stretch(one, machine)
    key = (floor, one.recipe, one.example.engine, stretch, machine.gpu.name)
    if key not in task.on_any:
        few, most = task.cells.span(one, machine)
        found = floor(task, one, few, most)
        task.on_any[key] = found * few.gpus if isinstance(found, float) else found
    found = task.on_any[key]
    return found / machine.gpus if isinstance(found, float) else found


def _by_passes(task: Task, one: Runnable, few: TrainConfig, most: TrainConfig) -> float | Outcome:
    """From the fewest GPUs to the most, whatever the states take."""
    missing, sequences = task.held.bound(one.recipe, few, MOST_SEQUENCES, most)
    if missing > 0:
        return tally.Out(tally.MISSES, describe(few), missing)
    return _seconds(task, one, few, (sequences, few.grad_accum), most)


def _by_ledger(task: Task, one: Runnable, few: TrainConfig, most: TrainConfig) -> float | Outcome:
    """From the fewest nodes to the most, with what fits on the most."""
    needs = task.needs.of(one.recipe, few)
    missing = needs.misses(lambda: most, nearest=False)
    if missing > 0:
        return tally.Out(tally.MISSES, describe(few), missing)
    batch = (needs.on_more(MOST_SEQUENCES, lambda: most, nearest=False), few.grad_accum)
    return _seconds(task, one, few, batch, most)


def _as_on_more(task: Task, one: Runnable, machine: Machine) -> float | Outcome:
    """Seconds per token at least with what fits on more GPUs."""
    config = task.config(one, machine)
    needs = task.needs.of(one.recipe, config)
    top = partial(task.cells.on_most, config, one.recipe)
    missing = needs.misses(top)
    if missing > 0:
        return tally.Out(tally.MISSES, describe(config), missing)
    listed = batches(task.trial(one, config), config)
    if listed == ():
        return 0.0
    if listed is not None:
        return _seconds(task, one, config, listed[-1])
    return _seconds(task, one, config, (needs.on_more(MOST_SEQUENCES, top), config.grad_accum))


def _seconds(
    task: Task, one: Runnable, config: TrainConfig, batch: Batch, most: TrainConfig | None = None
) -> float | Outcome:
    seconds = task.speed.at_least(config, batch, task.kinds(one), most)
    return tally.Out(tally.NO_SPEED, describe(config)) if seconds is None else seconds


_NEARER: tuple[Callable[[Task, Runnable, Machine], float | Outcome], ...] = (
    _as_passes_allow,
    _as_on_any,
    _as_on_more,
    Task.unless_beaten,
)
"""Questions about one configuration, the cheapest first; the last one settles it."""


class _Floors:
    """GPU-seconds a token takes at least, by kind of work and kind of GPU."""

    def __init__(self, task: Task, floor: Floor) -> None:
        self._task = task
        self._floor = floor
        self._best: dict[tuple[int, str], float] = {}
        self._known: dict[tuple[int, str], list[tuple[Runnable, float]]] = {}
        self._single: dict[tuple[Hashable, str], float] = {}

    def best(self, machine: Machine) -> float:
        """Of any recipe."""
        assert machine.gpu is not None
        key = (machine.kind, machine.gpu.name)
        if key not in self._best:
            works = self._task.works_on(machine.kind)
            floors = (self._one(work, one, machine.gpu) for work, one in works.items())
            self._best[key] = min(floors, default=0.0)
        return self._best[key]

    def worth(self, machine: Machine) -> float:
        """What the objective can be at best."""
        seconds = self.best(machine) / machine.gpus
        if self._task.wish.objective == "cost":
            assert machine.usd_per_hour is not None
            return seconds * machine.usd_per_hour
        return seconds

    def corner(self, machine: Machine) -> float:
        """Seconds and dollars together: near the origin lies what dominates most."""
        seconds = self.best(machine) / machine.gpus
        return seconds * seconds * (machine.usd_per_hour or 0.0)

    def of(self, machine: Machine) -> list[tuple[Runnable, float]]:
        """Recipes of a machine with their floors, the least first."""
        assert machine.gpu is not None
        key = (machine.kind, machine.gpu.name)
        if key not in self._known:
            found = [
                (one, self._one(self._task.kinds(one).work, one, machine.gpu))
                for one in self._task.cells.runnable[machine.kind]
            ]
            self._known[key] = sorted(found, key=lambda pair: pair[1])
        return self._known[key]

    def _one(self, work: Hashable, one: Runnable, gpu: GpuSpec) -> float:
        key = (work, gpu.name)
        if key not in self._single:
            self._single[key] = self._floor(one.example, gpu, work)
        return self._single[key]
