"""Whether runs fit, judged without the runs that decided the slack.

What a run requires is what it needs and a share of what comes and goes within its step. The share
is the smallest at which no run of the other groups that ran out of memory, or failed for a cause
not recorded, is said to fit; the verdicts on the group left out make the matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vram_plan.estimator.memory import Memory
from vram_plan.estimator.overhead import MADE_WITHIN_THE_STEP
from vram_plan.profiles.measured_row import Row
from vram_plan.reports.validate.outcomes import MEASURED, Outcome

__all__ = ["LARGEST_SHARE", "VERDICTS", "Trial", "held_out_matrix", "slack_share", "trials"]

LARGEST_SHARE = 0.35
"""A failure that would need more slack than this was not fragmentation: the plan is wrong there."""
_BEYOND = 1e-6
FITS, FITS_NOT = VERDICTS = "fits", "does not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run with an outcome, and what the plan says it needs.

    Attributes:
        row: the measurement.
        spare: share of what is made within the step, as it stands at the peak, by which the need
            could grow and still fit.
    """

    row: Row
    spare: float

    def fits(self, share: float) -> bool:
        """Whether it fits with this much slack."""
        return self.spare >= share


def trials(outcomes: Iterable[Outcome]) -> list[Trial]:
    """The runs of quality A and B with an outcome that the plan can express, on a known card."""
    return [
        Trial(row=one.row, spare=_spare(one.plan.memory, one.usable_bytes))
        for one in outcomes
        if one.row.quality != "C"
    ]


def _spare(memory: Memory, usable: int) -> float:
    made = sum(memory.components[name] for name in MADE_WITHIN_THE_STEP)
    return (usable - memory.needed_bytes) / max(made, 1)


def slack_share(tried: Iterable[Trial]) -> float:
    """The smallest share at which no run that failed is said to fit."""
    failed = (trial.spare for trial in tried if trial.row.outcome != "ok")
    needed = [spare for spare in failed if 0 <= spare <= LARGEST_SHARE]
    return max(needed, default=0.0) + _BEYOND


def held_out_matrix(tried: Sequence[Trial]) -> dict[str, dict[str, int]]:
    """Outcome → verdict → runs, each judged by a share that its group had no part in."""
    counts: Counter[tuple[str, str]] = Counter()
    for group in {trial.row.group for trial in tried}:
        share = slack_share(trial for trial in tried if trial.row.group != group)
        for trial in tried:
            if trial.row.group == group:
                counts[trial.row.outcome, FITS if trial.fits(share) else FITS_NOT] += 1
    return {
        outcome: {verdict: counts[outcome, verdict] for verdict in VERDICTS} for outcome in MEASURED
    }
