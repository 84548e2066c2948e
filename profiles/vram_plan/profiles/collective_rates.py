"""How fast the GPUs of a measured machine exchange: latency and bandwidth of every collective.

``vram-plan bench calibrate`` writes them into the profile of a machine with several GPUs, in the
table ``collectives``. A profile without it is one of a single GPU, or of an earlier version: links
are then those of the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from vram_plan.profiles.efficiency import CALIBRATED
from vram_plan.profiles.gpus import GpuSpec

__all__ = ["CollectiveRate", "MeasuredLinks", "links_from", "links_of", "links_table"]

_TABLE = "collectives"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRate:
    """One collective between so many ranks: seconds = latency + sent bytes / rate.

    Attributes:
        kind: ``all-reduce``, ``all-gather``, ``reduce-scatter``, ``all-to-all`` or
            ``point-to-point``.
        ranks: that took part.
        latency_seconds: of a call without data.
        bytes_per_s: of what every rank sends (nccl-tests' bus bandwidth).
    """

    kind: str
    ranks: int
    latency_seconds: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if self.ranks < 2:
            raise ValueError(f"{self.kind}: ranks must be at least 2, got {self.ranks}")
        if self.latency_seconds < 0 or self.bytes_per_s <= 0:
            raise ValueError(f"{self.kind}: latency and rate must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLinks:
    """Every collective that was measured inside one machine."""

    rates: tuple[CollectiveRate, ...]

    def rate(self, kind: str, ranks: int) -> CollectiveRate | None:
        """That of the smallest group measured with as many ranks, else of the largest one."""
        known = sorted((one for one in self.rates if one.kind == kind), key=lambda one: one.ranks)
        return next((one for one in known if one.ranks >= ranks), known[-1] if known else None)


def links_from(document: Mapping[str, Any]) -> MeasuredLinks | None:
    """The links of a profile that was read; None where it has none.

    Raises:
        ValueError: when the table is malformed.
    """
    rows = document.get(_TABLE)
    if not rows:
        return None
    try:
        return MeasuredLinks(rates=tuple(CollectiveRate(**row) for row in rows))
    except TypeError as error:
        raise ValueError(f"{_TABLE}: {error}") from None


def links_table(links: MeasuredLinks) -> list[str]:
    """The lines of a profile that `links_from` reads again."""
    lines = []
    for one in links.rates:
        lines += ["", f"[[{_TABLE}]]", f'kind = "{one.kind}"', f"ranks = {one.ranks}"]
        lines += [
            f"latency_seconds = {one.latency_seconds!r}",
            f"bytes_per_s = {one.bytes_per_s!r}",
        ]
    return lines


@cache
def links_of(gpu: GpuSpec) -> MeasuredLinks | None:
    """The links of a machine that was measured; None for a card of the catalogue."""
    if not gpu.source.startswith(CALIBRATED):
        return None
    import tomllib  # only plans for a measured machine pay for it

    with open(gpu.source.removeprefix(CALIBRATED), "rb") as file:
        return links_from(tomllib.load(file))
