"""A small robust fit with non-negative parts, and its error on groups it did not see.

measured ≈ base + Σ coefficient · part, the sum of the relative errors least (iteratively reweighted
least squares, P. J. Green 1984), parts that come out negative left out. Rows of one group are
correlated, so whole groups are held out; the interval is split-conformal: the range of the held-out
ratios measured / predicted, with the finite-sample ranks of Lei et al. 2018 (arXiv:1604.04173).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor
from statistics import median

__all__ = [
    "Crossfit",
    "Judged",
    "Sample",
    "coverage",
    "crossfit",
    "median_error",
    "predict",
    "widening_for",
]

FOLDS = 5
SHARE = 0.90
MISPLANNED = 0.90
"""A reading below this share of what is known to be there tells of a wrong plan, not of its cache:
it is judged, but no coefficient is fitted on it."""
_ROUNDS = 30
_SMALLEST = 1e-4  # relative error below which a row does not pull harder
Coefficients = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reading.

    Attributes:
        group: rows of one group stay together.
        base: bytes that are known.
        parts: what the coefficients multiply.
        measured: bytes that were read.
    """

    group: str
    base: int
    parts: Coefficients
    measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A sample that its fit has not seen.

    Attributes:
        sample: the reading.
        error: predicted / measured − 1.
        widening: by what factor an interval made without its group must grow to hold it just so;
            below 1 it holds it with room.
    """

    sample: Sample
    error: float
    widening: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossfit:
    """A fit on all samples, with what held-out groups say of it.

    Attributes:
        coefficients: one for each part, none negative.
        low: factor under which 5 % of held-out readings lie.
        high: factor above which 5 % lie.
        judged: every sample, judged without its group.
    """

    coefficients: Coefficients
    low: float
    high: float
    judged: tuple[Judged, ...]


def coverage(judged: Sequence[Judged], widening: float = 1.0) -> float:
    """Share of readings inside their interval, widened by a factor at both ends."""
    return sum(one.widening <= widening for one in judged) / len(judged)


def widening_for(judged: Sequence[Judged]) -> float:
    """The smallest factor at both ends with which intervals hold nine readings of ten."""
    ordered = sorted(one.widening for one in judged)
    return ordered[ceil(SHARE * len(ordered)) - 1]


def median_error(judged: Sequence[Judged]) -> float:
    """Median absolute error."""
    return median(abs(one.error) for one in judged)


def crossfit(samples: Sequence[Sample]) -> Crossfit:
    """Fit all samples, and judge the fit on held-out groups.

    Raises:
        ValueError: with fewer than two groups.
    """
    folds = _folds(samples)
    if len(folds) < 2:
        raise ValueError("cross-validation needs rows of at least two groups")
    low, high = _interval(_held_out(folds))
    judged = tuple(_judged(folds))
    return Crossfit(coefficients=_fit(samples), low=low, high=high, judged=judged)


def _folds(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Groups spread over the folds, the largest first, each to the emptiest fold."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    folds: list[list[Sample]] = [[] for _ in range(min(FOLDS, len(groups)))]
    for _, members in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(folds, key=len).extend(members)
    return folds


def _rest(folds: Sequence[Sequence[Sample]], without: int) -> list[list[Sample]]:
    return [list(fold) for index, fold in enumerate(folds) if index != without]


def _held_out(folds: Sequence[Sequence[Sample]]) -> list[float]:
    """Measured / predicted of every sample, predicted without its fold."""
    ratios = []
    for index, fold in enumerate(folds):
        others = [sample for rest in _rest(folds, index) for sample in rest]
        coefficients = _fit(others)
        ratios += [sample.measured / predict(sample, coefficients) for sample in fold]
    return ratios


def _judged(folds: Sequence[Sequence[Sample]]) -> Iterator[Judged]:
    """Every sample, by a fit and an interval that were made without its fold."""
    for index, fold in enumerate(folds):
        rest = _rest(folds, index)
        seen = _held_out(rest) if len(rest) > 1 else _in_sample(rest[0])
        low, high = _interval(seen)
        coefficients = _fit([sample for others in rest for sample in others])
        for sample in fold:
            ratio = sample.measured / predict(sample, coefficients)
            widening = max(low / ratio, ratio / high)
            yield Judged(sample=sample, error=1 / ratio - 1, widening=widening)


def _in_sample(samples: Sequence[Sample]) -> list[float]:
    coefficients = _fit(samples)
    return [sample.measured / predict(sample, coefficients) for sample in samples]


def _interval(ratios: Iterable[float]) -> tuple[float, float]:
    ordered = sorted(ratios)
    tail = (1 - SHARE) / 2 * (len(ordered) + 1)
    last = min(ceil(len(ordered) + 1 - tail), len(ordered))
    return ordered[max(floor(tail) - 1, 0)], ordered[last - 1]


def predict(sample: Sample, coefficients: Coefficients) -> float:
    """What a fit says of a reading."""
    return sample.base + sum(c * p for c, p in zip(coefficients, sample.parts, strict=True))


def _fit(samples: Sequence[Sample]) -> Coefficients:
    """Least relative errors with coefficients that are not negative."""
    samples = [one for one in samples if one.measured >= MISPLANNED * one.base] or samples
    width = len(samples[0].parts)
    active = list(range(width))
    while True:
        solved = _reweighted(samples, active)
        negative = [index for index in active if solved[index] < 0]
        if not negative:
            return tuple(solved)
        worst = min(negative, key=lambda index: solved[index] * _size(samples, index))
        active.remove(worst)


def _size(samples: Sequence[Sample], index: int) -> float:
    return sum(sample.parts[index] for sample in samples) / len(samples)


def _reweighted(samples: Sequence[Sample], active: Sequence[int]) -> list[float]:
    """Least absolute relative errors by least squares whose weights follow the errors."""
    solved = [0.0] * len(samples[0].parts)
    if not active:
        return solved
    weights = [1.0 / sample.measured**2 for sample in samples]
    for _ in range(_ROUNDS):
        found = _least_squares(samples, weights, active)
        solved = [found.get(index, 0.0) for index in range(len(solved))]
        errors = [
            max(abs(predict(sample, tuple(solved)) / sample.measured - 1), _SMALLEST)
            for sample in samples
        ]
        weights = [
            1.0 / (sample.measured**2 * error)
            for sample, error in zip(samples, errors, strict=True)
        ]
    return solved


def _least_squares(
    samples: Sequence[Sample], weights: Sequence[float], active: Sequence[int]
) -> dict[int, float]:
    scale = {index: max(_size(samples, index), 1.0) for index in active}
    matrix = []
    for i in active:
        sums = [0.0] * (len(active) + 1)
        for weight, sample in zip(weights, samples, strict=True):
            pull = weight * sample.parts[i] / scale[i]
            for place, j in enumerate(active):
                sums[place] += pull * sample.parts[j] / scale[j]
            sums[-1] += pull * (sample.measured - sample.base)
        matrix.append(sums)
    found = _solve(matrix)
    return {index: value / scale[index] for index, value in zip(active, found, strict=True)}


def _solve(matrix: list[list[float]]) -> list[float]:
    """Gauss–Jordan with pivoting; a column without a pivot gets 0."""
    size = len(matrix)
    for step in range(size):
        pivot = max(range(step, size), key=lambda row: abs(matrix[row][step]))
        matrix[step], matrix[pivot] = matrix[pivot], matrix[step]
        head = matrix[step][step]
        if abs(head) < 1e-30:
            matrix[step][-1] = 0.0
            continue
        matrix[step] = [value / head for value in matrix[step]]
        for row in range(size):
            if row != step:
                factor = matrix[row][step]
                pairs = zip(matrix[row], matrix[step], strict=True)
                matrix[row] = [value - factor * other for value, other in pairs]
    return [row[-1] for row in matrix]
