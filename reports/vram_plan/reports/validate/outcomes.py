"""Runs that ended well or out of memory, against the plan's verdict for their GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from vram_plan.estimator.planner import Plan
from vram_plan.profiles.measured_row import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, and whether the plan says it fits.

    Attributes:
        plan: of the fullest rank.
        row: the measurement; its outcome is ``ok``, ``oom`` or ``failed`` (cause unrecorded).
        predicted_fits: whether the plan is sure of it.
        verdict: the plan's verdict in full: ``uncertain`` does not count as fitting.
        usable_bytes: what a program can have of the card.
        required_bytes: what the plan says the run cannot do without.
    """

    row: Row
    plan: Plan
    predicted_fits: bool
    verdict: str
    usable_bytes: int
    required_bytes: int


def judge_outcome(row: Row, plan: Plan) -> Outcome | None:
    """The verdict for the row's own card; None where the catalogue does not have it."""
    if plan.config.gpu is None:
        return None
    fit = plan.fits[0]
    return Outcome(
        row=row,
        plan=plan,
        predicted_fits=fit.fits,
        verdict=fit.verdict,
        usable_bytes=fit.usable_bytes,
        required_bytes=plan.memory.required_bytes,
    )


def confusion(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Measured outcome → verdict → runs."""
    counts: Counter[tuple[str, str]] = Counter()
    for outcome in outcomes:
        counts[outcome.row.outcome, outcome.verdict] += 1
    return {
        measured: {verdict: counts[measured, verdict] for verdict in VERDICTS}
        for measured in MEASURED
    }


MEASURED = ("ok", "oom", "failed")
VERDICTS = ("fits", "uncertain", "does not fit")
