"""The plans that need least memory: every recipe on its most GPUs first.

More GPUs never need more on each of them with the same recipe and engine, but for communicators,
whose bytes are known, and for the padding of shards; so what a recipe needs on its most GPUs says
what it needs at least on fewer, and most of those are never looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.overhead import overhead_bytes
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.cells import Machine, Runnable
from vram_plan.estimator.search.needs import MARGIN_BYTES
from vram_plan.estimator.search.task import Settled, Task
from vram_plan.estimator.search.trial import choose


@dataclass(slots=True, eq=False)
class _Cell:
    """A recipe on a number of GPUs, and the machines that offer it."""

    one: Runnable
    config: TrainConfig
    machines: list[Machine] = field(default_factory=list)
    floor: float = 0.0


def by_memory(task: Task) -> Settled:
    """Each recipe on its most GPUs, then the others as far as they can still be listed."""
    later: list[_Cell] = []
    for cells in _recipes(task):
        head = cells[0]
        required = _required(task, head)
        yield from _look(task, head, required)
        for cell in cells[1:]:
            if cell.config.engine == head.config.engine:
                saved = overhead_bytes(head.config) - overhead_bytes(cell.config)
                cell.floor = required - max(saved, 0) - MARGIN_BYTES
            later.append(cell)
    for cell in sorted(later, key=lambda cell: cell.floor):
        if task.standings.is_beaten(cell.floor):
            yield tally.Out(tally.BEATEN), len(cell.machines)
        else:
            yield from _look(task, cell, _required(task, cell))


def _recipes(task: Task) -> Iterator[list[_Cell]]:
    """Cells of each recipe, most GPUs first."""
    found: dict[int, dict[int, _Cell]] = defaultdict(dict)
    for machine in sorted(task.cells.machines, key=lambda machine: -machine.gpus):
        for one in task.cells.runnable[machine.kind]:
            cells = found[one.recipe]
            if machine.gpus not in cells:
                cells[machine.gpus] = _Cell(one, task.cells.config(one, machine))
            cells[machine.gpus].machines.append(machine)
    for cells in found.values():
        yield list(cells.values())


def _required(task: Task, cell: _Cell) -> int:
    """Bytes required on one of the machines; 0 where no micro-batch divides the global batch."""
    chosen = choose(task.trial(cell.one, cell.config), cell.config)
    return 0 if chosen is None else chosen.need.required


def _look(task: Task, cell: _Cell, required: int) -> Settled:
    """Each machine, unless what is required is beaten on all of them."""
    for index, machine in enumerate(cell.machines):
        if task.standings.is_beaten(required - MARGIN_BYTES):
            yield tally.Out(tally.BEATEN), len(cell.machines) - index
            return
        yield task.judge(cell.one, machine), 1
