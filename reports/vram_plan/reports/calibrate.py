"""Fit what no source code gives: ``python -m vram_plan.reports.calibrate``.

Takes the device readings of the project's own rows that are of quality A or B and not censored (a
card nearly full makes the allocator give cache back, so the reading says nothing of the free run).
Readings of what is reserved help to fit the cache of runs whose allocator is not replayed; the
others judge the replay and are left out of the fit. It fits each stratum, and
writes ``profiles/vram_plan/profiles/data/calibration.toml`` with the error
and the coverage on groups of rows that the fit did not see.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from vram_plan.estimator.device import cached_churn, outside_bytes, stratum_of
from vram_plan.estimator.overhead import rank_groups
from vram_plan.profiles.calibration import CALIBRATION_FILE, Calibration, DeviceFit
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.crossfit import (
    Crossfit,
    Judged,
    Sample,
    coverage,
    crossfit,
    median_error,
    widening_for,
)
from vram_plan.reports.outcome_folds import held_out_matrix, slack_share, trials
from vram_plan.reports.validate.judge import Comparison
from vram_plan.reports.validate.run import Validation, validate

__all__ = ["Reading", "calibrate", "crossfits", "nearest", "samples", "write"]

DEVICE, RESERVED = "device_used_bytes", "reserved_peak_bytes"
FULL_READING, FULL_ALLOCATED = 0.90, 0.80
"""Censored: a reading above this share of the card, or an allocated peak above the second."""
FEWEST, FEWEST_GROUPS = 12, 3
"""Readings of a stratum, and groups they are of, below which the one above it speaks."""
LEVELS = 2
CLEARLY = 0.75
"""A stratum speaks for itself where its held-out error is at most this share of the one above's."""
_FIELDS = (
    "rows",
    "fixed_bytes",
    "churn_share",
    "low",
    "high",
    "coverage",
    "median_error",
)


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


def device_fit(stratum: str, found: Crossfit, widening: float) -> DeviceFit:
    """The constants of a stratum as the data file keeps them, its interval widened."""
    fixed, churn = found.coefficients
    return DeviceFit(
        stratum=stratum,
        rows=len(found.judged),
        fixed_bytes=round(fixed),
        churn_share=round(churn, 4),
        low=round(found.low / widening, 4),
        high=round(found.high * widening, 4),
        coverage=round(coverage(found.judged, widening), 4),
        median_error=round(median_error(found.judged), 4),
    )


def judged(readings: Iterable[Reading], found: Mapping[str, Crossfit]) -> list[Judged]:
    """Every reading as the stratum judged it that a plan would ask."""
    result = []
    for reading in readings:
        stratum = nearest(reading.stratum, found)
        if stratum:
            result += [one for one in found[stratum].judged if one.sample is reading.sample]
    return result


def write(found: Calibration, path: Path) -> None:
    """Write the data file."""
    names = ", ".join(f'"{name}"' for name in found.sources)
    lines = [
        "# Written by `python -m vram_plan.reports.calibrate`; every figure is fitted on the",
        "# measured rows of the sources named, and none is derived.",
        f"date = {found.date}",
        f"sources = [{names}]",
        f"rows = {found.rows}",
        f"coverage = {found.coverage}",
        f"median_error = {found.median_error}",
        f"slack_share = {found.slack_share}",
    ]
    for outcome, verdicts in found.outcomes.items():
        lines += ["", f"[outcomes.{outcome}]"]
        lines += [f'"{verdict}" = {count}' for verdict, count in verdicts.items()]
    for fit in found.device.values():
        lines += ["", f'[device."{fit.stratum}"]']
        lines += [f"{name} = {getattr(fit, name)}" for name in _FIELDS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def calibrate(validation: Validation) -> Calibration:
    """Fit all strata, with the narrowest intervals that hold nine held-out readings of ten.

    Groups are few and differ, so the spread of some says too little of the next: all intervals are
    widened (or narrowed) by the one factor at which the share found is the share promised.
    """
    readings = samples(validation.comparisons)
    tried = trials(validation.outcomes)
    found = crossfits(readings)
    outside = judged(readings, found)
    widening = widening_for(outside)
    return Calibration(
        date=date.today().isoformat(),
        sources=tuple(sorted({reading.source for reading in readings})),
        rows=len(outside),
        coverage=round(coverage(outside, widening), 4),
        median_error=round(median_error(outside), 4),
        device={stratum: device_fit(stratum, one, widening) for stratum, one in found.items()},
        outcomes=held_out_matrix(tried),
        slack_share=round(slack_share(tried), 4),
    )


def main(arguments: list[str]) -> int:
    """Fit, write and report."""
    from vram_plan.reports.source_folds import source_errors

    parser = argparse.ArgumentParser(prog="python -m vram_plan.reports.calibrate")
    parser.add_argument("output", nargs="?", type=Path, default=CALIBRATION_FILE)
    output: Path = parser.parse_args(arguments).output
    validation = validate(read_rows())
    found = calibrate(validation)
    write(found, output)
    for fit in found.device.values():
        print(
            f"{fit.stratum:32} n {fit.rows:3}  fixed {fit.fixed_bytes / 2**30:5.2f} GiB  "
            f"churn {fit.churn_share:6.1%}  "
            f"interval × {fit.low:.3f}–{fit.high:.3f}  "
            f"coverage {fit.coverage:.0%}  median error {fit.median_error:.1%}"
        )
    print(
        f"{found.rows} readings in groups held out: {found.coverage:.1%} inside their interval, "
        f"median error {found.median_error:.1%}"
    )
    for one in source_errors(samples(validation.comparisons)):
        print(
            f"{one.source:20} n {one.rows:3}  median error {one.seen:6.1%}, without it in the fit "
            f"{one.unseen:6.1%}{'' if one.holds else '  (more than double, and above 2 %)'}"
        )
    for outcome, verdicts in found.outcomes.items():
        print(f"{outcome:6} {verdicts}")
    print(f"slack share {found.slack_share:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
