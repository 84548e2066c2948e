"""The speed a row states beside the plan's step time.

Which rows have a speed that can be compared, and on what machine they ran, is
`vram_plan.reports.speed`'s to say; that of the rest is not compared, and they are no less predicted
for it.
"""

from __future__ import annotations

from collections.abc import Callable

from vram_plan.estimator.planner import Plan, plan_config
from vram_plan.estimator.speed.step_time import StepTime, time_of
from vram_plan.profiles.efficiency import curves_of
from vram_plan.profiles.measured_row import Row
from vram_plan.reports.speed.rows import Timed, read_timed
from vram_plan.reports.validate.judge import Comparison

__all__ = ["SPEED_COLUMNS", "compare_speed"]


def _samples(timed: Timed, step: StepTime) -> float:
    return step.tokens_per_second / timed.config.seq_len


_FIGURES: dict[str, Callable[[Timed, StepTime], float]] = {
    "step_seconds": lambda timed, step: step.seconds,
    "tokens_per_second_per_gpu": lambda timed, step: step.tokens_per_second_per_gpu,
    "samples_per_second": _samples,
}
SPEED_COLUMNS = tuple(_FIGURES)


def compare_speed(row: Row, plan: Plan | None) -> list[Comparison]:
    """A comparison for each speed that a row states; none where it cannot be told or predicted.

    Args:
        row: the measurement.
        plan: of the row, where its memory can be planned.
    """
    stated = [name for name in SPEED_COLUMNS if getattr(row, name) is not None]
    if row.outcome != "ok" or not stated:
        return []
    for timed in read_timed([row]).timed:
        step = time_of(timed.work, timed.work.gpu, curves_of(timed.work.gpu))
        of_config = plan or plan_config(timed.config)
        return [
            Comparison(
                row=row,
                plan=of_config,
                metric=name,
                measured=getattr(row, name),
                said=_FIGURES[name](timed, step),
            )
            for name in stated
        ]
    return []
