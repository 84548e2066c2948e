"""The Nelder-Mead simplex, for fits with a handful of parameters.

Nelder and Mead, The Computer Journal 7(4), 1965; standard coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["nelder_mead"]

Point = list[float]
Function = Callable[[Sequence[float]], float]


def nelder_mead(
    function: Function, start: Sequence[float], *, step: float = 0.1, evaluations: int = 400
) -> Point:
    """The best point found with so many evaluations."""
    simplex = [list(start)]
    for i in range(len(start)):
        corner = list(start)
        corner[i] += step
        simplex.append(corner)
    ranked = sorted((function(point), point) for point in simplex)
    left = evaluations - len(ranked)
    while left > 0:
        worst, corner = ranked[-1]
        centre = [sum(point[i] for _, point in ranked[:-1]) / len(start) for i in range(len(start))]
        found, used = _better(function, centre, corner, (ranked[0][0], ranked[-2][0], worst))
        left -= used
        if found is not None:
            ranked[-1] = found
        else:
            best = ranked[0][1]
            shrunk = [_between(best, point, 0.5) for _, point in ranked[1:]]
            ranked[1:] = [(function(point), point) for point in shrunk]
            left -= len(shrunk)
        ranked.sort()
    return ranked[0][1]


def _better(
    function: Function, centre: Point, corner: Point, values: tuple[float, float, float]
) -> tuple[tuple[float, Point] | None, int]:
    """A point to take the worst corner's place, and the evaluations used; None: shrink."""
    best, second, worst = values
    mirrored = _between(centre, corner, -1.0)
    value = function(mirrored)
    if value < best:
        far = _between(centre, corner, -2.0)
        further = function(far)
        return ((further, far) if further < value else (value, mirrored)), 2
    if value < second:
        return (value, mirrored), 1
    near = _between(centre, corner, 0.5 if value >= worst else -0.5)
    inner = function(near)
    return ((inner, near) if inner < min(value, worst) else None), 2


def _between(a: Point, b: Point, share: float) -> Point:
    return [x + share * (y - x) for x, y in zip(a, b, strict=True)]
