"""Device readings that a fit can use, and what is fitted on each stratum of them.

A card nearly full makes the allocator give cache back, so its reading says nothing of the free run:
such readings are censored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vram_plan.estimator.device import cached_churn, outside_bytes, stratum_of
from vram_plan.estimator.overhead import rank_groups
from vram_plan.reports.crossfit import Crossfit, Sample, crossfit, median_error
from vram_plan.reports.validate.judge import Comparison

__all__ = ["DEVICE", "LEVELS", "RESERVED", "Reading", "crossfits", "nearest", "samples"]

DEVICE, RESERVED = "device_used_bytes", "reserved_peak_bytes"
FULL_READING, FULL_ALLOCATED = 0.90, 0.80
"""Censored: a reading above this share of the card, or an allocated peak above the second."""
FEWEST, FEWEST_GROUPS = 12, 3
"""Readings of a stratum, and groups they are of, below which the one above it speaks."""
LEVELS = 2
CLEARLY = 0.75
"""A stratum speaks for itself where its held-out error is at most this share of the one above's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A usable device reading."""

    stratum: str
    source: str
    sample: Sample


def samples(comparisons: Iterable[Comparison]) -> list[Reading]:
    """The uncensored readings of rows of quality A and B."""
    return [
        Reading(stratum=stratum_of(one.plan.config), source=one.row.family, sample=_sample(one))
        for one in comparisons
        if _usable(one)
    ]


def _usable(one: Comparison) -> bool:
    gpu, memory = one.plan.config.gpu, one.plan.memory
    if one.row.quality == "C" or gpu is None or one.metric not in {DEVICE, RESERVED}:
        return False
    if one.metric == RESERVED and memory.reserve is not None:
        return False
    full = one.measured > FULL_READING * gpu.usable_bytes
    return not full and memory.allocated_bytes <= FULL_ALLOCATED * gpu.usable_bytes


def _sample(one: Comparison) -> Sample:
    memory, device = one.plan.memory, one.metric == DEVICE
    held, config = memory.reserved_bytes, one.plan.config
    return Sample(
        group=one.row.group,
        base=(memory.allocated_bytes if held is None else held)
        + (outside_bytes(memory) if device else 0),
        parts=(
            float(1 + len(rank_groups(config))) if device else 0.0,
            float(cached_churn(config, memory)),
        ),
        measured=round(one.measured),
    )


def crossfits(readings: Iterable[Reading]) -> dict[str, Crossfit]:
    """A fit for every stratum with enough readings and groups, and for those above it."""
    strata: dict[str, list[Sample]] = {}
    for reading in readings:
        words = reading.stratum.split("/")
        for depth in range(1, LEVELS + 1):
            strata.setdefault("/".join(words[:depth]), []).append(reading.sample)
    return _pruned(
        {
            stratum: crossfit(chosen)
            for stratum, chosen in sorted(strata.items())
            if len(chosen) >= FEWEST and len({sample.group for sample in chosen}) >= FEWEST_GROUPS
        }
    )


def _pruned(found: dict[str, Crossfit]) -> dict[str, Crossfit]:
    """Without the strata that are met nearly as well, held out, by the one above them."""
    kept: dict[str, Crossfit] = {}
    for stratum, own in found.items():  # a stratum stands behind the one above it
        above = kept.get(nearest(stratum.rpartition("/")[0], kept))
        if above is not None:
            mine = {id(one.sample) for one in own.judged}
            theirs = [one for one in above.judged if id(one.sample) in mine]
            if median_error(own.judged) > CLEARLY * median_error(theirs):
                continue
        kept[stratum] = own
    return kept


def nearest(stratum: str, found: Mapping[str, Crossfit]) -> str:
    """The stratum itself or the closest above it that has a fit; empty without one."""
    while stratum and stratum not in found:
        stratum = stratum.rpartition("/")[0]
    return stratum
