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
from datetime import date
from pathlib import Path

from vram_plan.profiles.calibration import CALIBRATION_FILE, Calibration, DeviceFit
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.crossfit import (
    Crossfit,
    Judged,
    coverage,
    median_error,
    widening_for,
)
from vram_plan.reports.outcome_folds import held_out_matrix, slack_share, trials
from vram_plan.reports.readings import Reading, crossfits, nearest, samples
from vram_plan.reports.source_folds import source_errors
from vram_plan.reports.validate.run import Validation, validate

__all__ = ["calibrate", "write"]

_FIELDS = (
    "rows",
    "fixed_bytes",
    "churn_share",
    "low",
    "high",
    "coverage",
    "median_error",
)


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
