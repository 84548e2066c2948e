"""Every configuration of a space, one by one: slow, plain, and what the search has to equal."""

from __future__ import annotations

from vram_plan.estimator.search import tally
from vram_plan.estimator.search.pareto import front
from vram_plan.estimator.search.rent import priced_out
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.speed import Modelled, Speed
from vram_plan.estimator.search.ties import grouped
from vram_plan.estimator.search.trial import Trial, judge
from vram_plan.estimator.search.wish import Candidate, Found, Wish


def exhaustive(space: Space, wish: Wish, speed: Speed | None = None) -> Found:
    """Try every configuration: nothing is remembered, nothing bounded."""
    trial = Trial(space, wish, speed=speed or Modelled())
    counts, candidates = tally.Tally(), []
    for order in range(space.raw):
        found = outcome(trial, order)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            counts.add(found)
    return Found(
        plans=grouped(candidates, wish),
        front=front(candidates) if wish.wants_front else (),
        ruled_out=counts.rows(),
        raw=space.raw,
        fitting=len(candidates),
        examined=space.raw,
    )


def outcome(trial: Trial, order: int) -> Candidate | tally.Out:
    """What becomes of the configuration at one place of the space."""
    space = trial.space
    options = space.at(order)
    dear = priced_out(trial.wish, options["gpus"], options["gpu"])
    if dear:
        return dear
    try:
        config = space.config(options)
    except ValueError as error:
        return tally.refusal(str(error), options["gpu"])
    return judge(trial, order, config)
