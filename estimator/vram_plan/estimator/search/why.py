"""Why a plan wins: what every other choice would have made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vram_plan.estimator.search.exhaustive import outcome
from vram_plan.estimator.search.tally import Out
from vram_plan.estimator.search.trial import Trial
from vram_plan.estimator.search.wish import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The same plan with another value for one option.

    Attributes:
        option: its name with underscores.
        value: the other value.
        outcome: what becomes of it.
    """

    option: str
    value: Any
    outcome: Candidate | Out


def alternatives(trial: Trial, plan: Candidate, name: str) -> Iterator[Alternative]:
    """Every other word of an option; of numbers and machines those on either side."""
    space = trial.space
    mine, values = space.at(plan.order), space.ranges[name]
    index = values.index(mine[name])
    counted = isinstance(values[index], int) and name not in {"zero"}
    near = values[max(0, index - 1) : index + 2] if counted or name == "gpu" else values
    for value in near:
        if value != mine[name]:
            order = space.place({**mine, name: value})
            yield Alternative(option=name, value=value, outcome=outcome(trial, order))
