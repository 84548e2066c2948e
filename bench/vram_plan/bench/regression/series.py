"""Stored runs as series: the same configuration on the same hardware, run after run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from vram_plan.bench.runs.surroundings import HARDWARE

__all__ = ["METRICS", "Point", "Series", "differences", "series_of"]

METRICS = ("step_seconds", "allocated_bytes", "reserved_bytes", "device_bytes", "prediction_error")
_COLUMNS = {
    "step_seconds": "seconds",
    "allocated_bytes": "allocated",
    "reserved_bytes": "reserved",
    "device_bytes": "device_bytes",
}
_CENSORED_SHARE = 0.95
"""Of the capacity: from there on the allocator fills what there is and gives cache back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run.

    Attributes:
        run: its id.
        values: metric → figure, of those that were seen.
        surroundings: versions and hardware it ran on.
        censored: its pools came near the device's capacity.
    """

    run: str
    values: Mapping[str, float]
    surroundings: Mapping[str, str]
    censored: bool = False

    @property
    def versions(self) -> dict[str, str]:
        """What software it ran on, without the code that is judged."""
        return {k: v for k, v in self.surroundings.items() if k not in HARDWARE and k != "commit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Runs of one configuration on one kind of machine, oldest first.

    Attributes:
        key: the configuration's.
        name: for a person.
        points: those that ended well.
    """

    key: str
    name: str
    points: tuple[Point, ...]


def series_of(rows: Iterable[Mapping[str, Any]], *, newest: int = 100) -> list[Series]:
    """Group the store's index; runs that did not end well are in no series.

    Args:
        rows: of the index, oldest first.
        newest: runs of each series that are looked at.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in {str(row["id"]): row for row in rows}.values():  # a copied file is the same run
        if row["outcome"] == "ok":
            found.setdefault(
                (str(row["series"]), _machine(row["surroundings"] or "{}")), []
            ).append(row)
    return [
        Series(key=key, name=_name(members[-1]), points=tuple(map(_point, members[-newest:])))
        for (key, _), members in found.items()
    ]


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Each fact that is not what it was, in words."""
    names = sorted({*before, *now})
    return tuple(
        f"{name} {before.get(name, 'none')} → {now.get(name, 'none')}"
        for name in names
        if before.get(name) != now.get(name)
    )


@lru_cache(maxsize=4096)
def _facts(text: str) -> Mapping[str, str]:
    found: dict[str, str] = json.loads(text)
    return MappingProxyType(found)


def _surroundings(row: Mapping[str, Any]) -> Mapping[str, str]:
    return _facts(row["surroundings"] or "{}")


@lru_cache(maxsize=4096)
def _machine(text: str) -> str:
    seen = _facts(text)
    return ", ".join(f"{name} {seen[name]}" for name in sorted(HARDWARE) if name in seen)


def _name(row: Mapping[str, Any]) -> str:
    where = _surroundings(row).get("gpu", row["device"])
    return f"{row['model']} {row['method']} on {where} [{str(row['series'])[:6]}]"


def _point(row: Mapping[str, Any]) -> Point:
    seen = {metric: _figure(row[column]) for metric, column in _COLUMNS.items()}
    values = {metric: value for metric, value in seen.items() if value}
    planned, allocated = _figure(row["planned"]), values.get("allocated_bytes")
    if planned and allocated:
        values["prediction_error"] = planned / allocated - 1
    reading = max(values.get("reserved_bytes", 0.0), values.get("device_bytes", 0.0))
    capacity = _figure(row["capacity"])
    return Point(
        run=str(row["id"]),
        values=values,
        surroundings=_surroundings(row),
        censored=capacity is not None and reading > _CENSORED_SHARE * capacity,
    )


def _figure(value: Any) -> float | None:
    """A number above zero; files come from other machines and other hands."""
    if isinstance(value, int | float) and math.isfinite(value) and value > 0:
        return float(value)
    return None
