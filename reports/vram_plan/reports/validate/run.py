"""Predict every measured row that the plan can express, and say why not of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.planner import Plan, plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.measured import Invalid, Row
from vram_plan.reports.validate.judge import Comparison, compare, stage_of
from vram_plan.reports.validate.model_of_row import model_of_row
from vram_plan.reports.validate.options_of_row import options_of_row
from vram_plan.reports.validate.outcomes import Outcome, judge_outcome
from vram_plan.reports.validate.timing import compare_speed
from vram_plan.reports.validate.unplanned import refuse_unstated_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that the plan cannot express, and why."""

    row: Row
    reason: str


@dataclass(slots=True, kw_only=True)
class Validation:
    """What came of a file of rows.

    Attributes:
        rows: rows read.
        comparisons: a measured figure beside its prediction; several for a row of more counters.
        outcomes: how runs ended beside the plan's verdict.
        skipped: rows that cannot be expressed.
        invalid: what in the file is malformed.
    """

    rows: list[Row] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    invalid: list[Invalid] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Predicted share of the rows of quality A and B that have a memory figure."""
        wanted = [row.id for row in self.rows if row.quality != "C" and row.has_memory]
        left = {skipped.row.id for skipped in self.skipped}
        return sum(name not in left for name in wanted) / len(wanted) if wanted else 1.0


class Planner:
    """Plans of rows; rows of the same configuration share one."""

    def __init__(self) -> None:
        self._plans: dict[tuple[TrainConfig, int | None], Plan | str] = {}

    def plan(self, row: Row, stage: int | None) -> Plan:
        """The plan of a row for a stage of its pipeline.

        Raises:
            ValueError: when the plan cannot express it.
        """
        refuse_unstated_memory(row)
        model = model_of_row(row)
        config = resolve(model, options_of_row(row, model))
        key = (config, stage)
        if key not in self._plans:
            self._plans[key] = _predict(config, stage)
        found = self._plans[key]
        if isinstance(found, str):
            raise ValueError(found)
        return found


def _predict(config: TrainConfig, stage: int | None) -> Plan | str:
    try:
        return plan_config(config, stage=stage)
    except ValueError as error:
        return str(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of one row.

    Attributes:
        row: as read.
        comparisons: its figures beside their predictions.
        outcome: how the run ended beside the plan's verdict.
        reason: why the plan cannot express it; None where it can.
    """

    row: Row
    comparisons: list[Comparison] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str | None = None


def validate(
    rows: Iterable[Row | Invalid], *, progress: Callable[[int], None] | None = None
) -> Validation:
    """Predict rows as they come, in this process; replays wait until a figure is asked for.

    Args:
        rows: of ``vram_plan.profiles.measured.read_rows``.
        progress: called with the number of rows done.
    """
    planner = Planner()
    judged = (row if isinstance(row, Invalid) else judge_row(row, planner) for row in rows)
    return collect(judged, progress=progress)


def collect(
    judged: Iterable[Judged | Invalid], *, progress: Callable[[int], None] | None = None
) -> Validation:
    """What came of rows, in their order, put together."""
    result = Validation()
    for one in judged:
        if isinstance(one, Invalid):
            result.invalid.append(one)
            continue
        result.rows.append(one.row)
        result.comparisons.extend(one.comparisons)
        if one.outcome is not None:
            result.outcomes.append(one.outcome)
        if one.reason is not None:
            result.skipped.append(Skipped(row=one.row, reason=one.reason))
        if progress is not None:
            progress(len(result.rows))
    return result


def judge_row(row: Row, planner: Planner) -> Judged:
    """Every comparison of a row and its outcome, or why there are none."""
    try:
        found, outcome = judge(row, planner)
    except ValueError as error:
        return Judged(row=row, reason=str(error))
    reason = _nothing(row) if outcome is None and not found else None
    return Judged(row=row, comparisons=found, outcome=outcome, reason=reason)


def judge(row: Row, planner: Planner) -> tuple[list[Comparison], Outcome | None]:
    """Every comparison of a row, and its outcome.

    Raises:
        ValueError: when the plan cannot express it.
    """
    stage = stage_of(row)
    try:
        whole = planner.plan(row, None)
    except ValueError:
        speeds = [] if row.has_memory else compare_speed(row, None)
        if not speeds:
            raise
        return speeds, None
    read = whole if stage is None else planner.plan(row, stage)
    return [*compare(row, read), *compare_speed(row, whole)], judge_outcome(row, whole)


def _nothing(row: Row) -> str:
    gpu = f"GPU {row.gpu} is not in the catalogue" if row.gpu else "the GPU is not stated"
    return f"no figure that is predicted, and {gpu}"


def worst(comparisons: Iterable[Comparison], count: int) -> Iterator[Comparison]:
    """The comparisons with the largest errors, largest first."""
    ordered = sorted(comparisons, key=lambda one: -abs(one.error))
    return iter(ordered[:count])
