"""Constants that no source code gives, fitted on measured rows: ``data/calibration.toml``.

``python -m vram_plan.reports.calibrate`` writes the file. It says when and on which rows, and what
error and coverage the fit has on rows it did not see.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["CALIBRATION_FILE", "Calibration", "DeviceFit", "load_calibration"]

CALIBRATION_FILE = os.path.join(os.path.dirname(__file__), "data", "calibration.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFit:
    """What a device reading adds to what the plan knows, for one stratum of runs.

    Reading = reserved + CUDA context and communicators + ``fixed_bytes`` · (1 + groups of ranks) +
    ``churn_share`` · bytes made within the step. Where the allocator is not replayed, the place of
    reserved is taken by allocated; where it is replayed on several GPUs, nothing is added to it.

    Attributes:
        stratum: ``one GPU/hf/adapters``; a shorter one is for runs without a fit of their own.
        rows: readings it was fitted on.
        fixed_bytes: outside the allocator beyond the documented size of a context, and beyond
            that of the communicator of each group of ranks; it does not grow with the run.
        churn_share: cache that the allocator keeps of what comes and goes within a step.
        low: factor of the lower end of the interval.
        high: factor of the upper end.
        coverage: share of readings inside their interval in cross-validation.
        median_error: median absolute error of the reading in cross-validation.
    """

    stratum: str
    rows: int
    fixed_bytes: int
    churn_share: float
    low: float
    high: float
    coverage: float
    median_error: float

    def __post_init__(self) -> None:
        if min(self.fixed_bytes, self.churn_share) < 0:
            raise ValueError(f"{self.stratum}: a part of a device reading cannot be negative")
        if not 0 < self.low <= self.high:
            raise ValueError(f"{self.stratum}: {self.low}–{self.high} is no interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The file.

    Attributes:
        date: when it was fitted.
        sources: families of the rows it was fitted on.
        rows: readings it was fitted on.
        coverage: share of them inside an interval that was made without their group.
        median_error: median absolute error of the middle, fitted without their group.
        device: stratum → fit.
        outcomes: how runs ended → verdict → runs, judged by a slack that their groups had no part
            in.
        slack_share: the slack that all of them together ask for: the share of what is made within
            a step at which no run that failed is said to fit.
    """

    date: str
    sources: tuple[str, ...]
    rows: int
    coverage: float
    median_error: float
    device: dict[str, DeviceFit]
    outcomes: dict[str, dict[str, int]]
    slack_share: float

    def fit_of(self, stratum: str) -> DeviceFit | None:
        """The fit of a stratum, or of the nearest one above it."""
        while stratum:
            if stratum in self.device:
                return self.device[stratum]
            stratum = stratum.rpartition("/")[0]
        return None


@cache
def load_calibration(path: str = CALIBRATION_FILE) -> Calibration:
    """The fitted constants.

    Raises:
        ValueError: when the file is malformed.
    """
    import tomllib  # only runs that ask for a device reading pay for it

    with open(path, "rb") as file:
        document: dict[str, Any] = tomllib.load(file)
    fits = [DeviceFit(stratum=name, **values) for name, values in document["device"].items()]
    return Calibration(
        date=str(document["date"]),
        sources=tuple(document["sources"]),
        rows=int(document["rows"]),
        coverage=float(document["coverage"]),
        median_error=float(document["median_error"]),
        device={fit.stratum: fit for fit in fits},
        outcomes=document["outcomes"],
        slack_share=float(document["slack_share"]),
    )
