"""Which combinations are refused, each check asked once for all that it cannot tell apart.

Values are looked at one by one, so a recipe's are right on every machine where they are on one.
Degrees ask for numbers of ranks, and who counts them. What else is refused asks a number of GPUs
whether it is one and whether there are several nodes (`likeness`), and a kind of GPU for its
traits. A test holds it to ``resolve``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from operator import attrgetter, itemgetter
from typing import Any

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.methods.registry import check_method
from vram_plan.estimator.refusals import DEGREES, TOGETHER, VALUES, reasons
from vram_plan.estimator.search.likeness import gpu_traits, stages_are_gpus
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.variant import varied

Options = Mapping[str, Any]
_MACHINE = itemgetter("gpus", "gpus_per_node")
_RANKS = attrgetter("engine", "tp", "pp", "cp", "ep", "sequence_parallel", "stack")


class Refused:
    """What was said of combinations so far."""

    def __init__(self, space: Space) -> None:
        self._by_count = stages_are_gpus(space)
        self._in_8_bits = "fp8" in space.values("precision")
        self._valid: set[Hashable] = set()
        self._degrees: dict[Hashable, str] = {}
        self._together: dict[Hashable, str] = {}

    def line(
        self, recipe: Hashable, config: TrainConfig, machine: Options, options: Options
    ) -> str:
        """Why a recipe on a machine is refused; empty: it is not.

        Args:
            recipe: tells ``config`` from others.
            config: complete.
            machine: the fields that name the machine.
            options: what was typed.
        """
        gpus, per_node = counts = _MACHINE(machine)
        if recipe not in self._valid or counts not in self._valid:
            said = next(reasons(VALUES, varied(config, **machine), dict(options)), "")
            if said:
                return said
            self._valid |= {recipe, counts}
        degrees = (gpus, per_node, *_RANKS(config))
        if degrees not in self._degrees:
            found = reasons(DEGREES, varied(config, **machine), dict(options))
            self._degrees[degrees] = next(found, "")
        if self._degrees[degrees]:
            return self._degrees[degrees]
        spread = gpus if self._by_count else (gpus == 1, gpus == per_node)
        key = (recipe, spread, gpu_traits(machine["gpu"], eight=self._in_8_bits))
        if key not in self._together:
            self._together[key] = _together(varied(config, **machine), options)
        return self._together[key]


def _together(config: TrainConfig, options: Options) -> str:
    given = {name: value for name, value in options.items() if value is not None}
    said = next(reasons(TOGETHER, config, given), "")
    if not said:
        try:
            check_method(config)
        except ValueError as error:
            return str(error)
    return said
