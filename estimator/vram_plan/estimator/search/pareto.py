"""Plans that no other beats in both cost and time."""

from __future__ import annotations

from collections.abc import Iterable

from vram_plan.estimator.search.wish import Candidate


def place(plan: Candidate) -> tuple[float, float, int]:
    """Seconds and dollars per token, and the place in the space for those that are equal."""
    assert plan.seconds_per_token is not None
    assert plan.usd_per_token is not None
    return (plan.seconds_per_token, plan.usd_per_token, plan.order)


def front(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The Pareto front of dollars and seconds per token, fastest first.

    A plan stays when every other is slower or dearer; of equals the first of the space stays.
    """
    known = [plan for plan in candidates if plan.usd_per_token is not None]
    kept: list[Candidate] = []
    for plan in sorted(known, key=place):
        if not kept or place(plan)[1] < place(kept[-1])[1]:
            kept.append(plan)
    return tuple(kept)
