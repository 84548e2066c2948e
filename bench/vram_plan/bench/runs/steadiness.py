"""A run's own verdict: was it warm, was it steady, did the loss fall.

The bounds are those of published practice: nvbench and MLPerf-like harnesses take a run for steady
when its steps scatter by 2 % and drift by 1 % over twenty of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["verdict"]

_FEWEST = 20
_SCATTER = 0.02
_DRIFT = 0.01
_COLD = 1.05
_QUARTERS = 4


def verdict(seconds: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """What the raw figures say of themselves.

    Args:
        seconds: of the timed steps.
        losses: before the first and after the last step.

    Returns:
        ``warm``, ``steady`` and ``loss_fell`` (None where that cannot be said), ``reasons`` for
        what is not True, and the figures behind it.
    """
    found: dict[str, Any] = {"warm": None, "steady": None, "loss_fell": None, "reasons": []}
    if len(losses) == 2:
        found["loss_fell"] = losses[1] < losses[0]
        if not found["loss_fell"]:
            found["reasons"].append(f"the loss did not fall: {losses[0]:.4g} to {losses[1]:.4g}")
    if len(seconds) >= _QUARTERS:
        found["warm"] = _warm(seconds)
        if not found["warm"]:
            found["reasons"].append("the first timed steps are slower: warm up longer")
    if len(seconds) < _FEWEST:
        found["reasons"].append(f"{len(seconds)} timed steps; steadiness needs {_FEWEST}")
        return found
    last = seconds[-_FEWEST:]
    middle = statistics.fmean(last)
    scatter, drift = statistics.stdev(last) / middle, _slope(last) * _FEWEST / middle
    found |= {"scatter": scatter, "drift": drift}
    found["steady"] = scatter <= _SCATTER and abs(drift) <= _DRIFT
    if not found["steady"]:
        found["reasons"].append(
            f"the last {_FEWEST} steps scatter by {scatter:.1%} and drift by {drift:+.1%}"
        )
    return found


def _warm(seconds: Sequence[float]) -> bool:
    """The first quarter is no slower than what follows."""
    first = len(seconds) // _QUARTERS
    return statistics.median(seconds[:first]) <= _COLD * statistics.median(seconds[first:])


def _slope(values: Sequence[float]) -> float:
    """Change from one to the next, by least squares."""
    places = range(len(values))
    return statistics.linear_regression(places, values).slope
