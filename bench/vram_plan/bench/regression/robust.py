"""Statistics that single slow runs do not move."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

__all__ = ["coefficient_of_variation", "lag_1", "median_interval", "sigma"]

_SIGMAS_PER_MAD = 1.4826
"""Of a normal distribution: 1 / Φ⁻¹(3/4)."""


def sigma(values: Sequence[float]) -> float:
    """Standard deviation by way of the median absolute deviation; 0 below two values.

    Formula: 1.4826 · median(|x − median(x)|).
    """
    if len(values) < 2:
        return 0.0
    middle = statistics.median(values)
    return _SIGMAS_PER_MAD * statistics.median(abs(value - middle) for value in values)


def coefficient_of_variation(values: Sequence[float]) -> float:
    """``sigma`` as a share of the median."""
    middle = statistics.median(values)
    return sigma(values) / abs(middle) if middle else 0.0


def lag_1(values: Sequence[float]) -> float:
    """Correlation of each value with the next: how much of the noise is drift, −1 … 1.

    Fewer than four values, or values all alike, say nothing: 0.
    """
    if len(values) < 4:
        return 0.0
    middle = statistics.fmean(values)
    apart = [value - middle for value in values]
    whole = sum(x * x for x in apart)
    return sum(a * b for a, b in itertools.pairwise(apart)) / whole if whole else 0.0


def median_interval(
    values: Sequence[float], share: float = 0.9
) -> tuple[float, float, float] | None:
    """An interval that holds the median with at least this probability: (low, high, coverage).

    Of order statistics, so for any distribution: [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] holds it with probability
    1 − 2·P(Binomial(n, ½) < k). None where even the extremes do not hold it so often (n < 5 at
    90 %).
    """
    ordered, n = sorted(values), len(values)
    found = None
    for k in range(1, n // 2 + 1):
        outside = sum(math.comb(n, i) for i in range(k)) / 2**n
        if 1 - 2 * outside < share:
            break
        found = (ordered[k - 1], ordered[n - k], 1 - 2 * outside)
    return found
