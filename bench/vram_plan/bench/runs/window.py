"""The samples of the timed steps alone: loading and warming up would blur power and clocks."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["columns_of", "timed_window"]

#: NVML's reasons that are a fault of the machine: hardware slowdown, its thermal and its power
#: brake form (nvml.h ``nvmlClocksThrottleReasonHwSlowdown``, ``…HwThermalSlowdown``,
#: ``…HwPowerBrakeSlowdown``), and software's thermal one.
_THROTTLED = 0x8 | 0x40 | 0x80 | 0x20
_SHARE = 0.01
_OTHERS = re.compile(r"^gpu\d+_")
"""What the sampler puts before the readings of GPUs beside the first one."""
_MIDDLES = ("gpu_percent", "power_watts", "sm_megahertz", "celsius")


def timed_window(
    samples: Mapping[str, Any] | None, marks: Sequence[Mapping[str, Any]], warmup: int, timed: int
) -> dict[str, Any] | None:
    """What the sampler saw during the timed steps; None without samples.

    Args:
        samples: by column, with the monotonic time at which they began.
        marks: the stages with the same clock; every step's is at its beginning.
        warmup: untimed steps before the timed ones.
        timed: timed steps, the last of the run.

    Returns:
        Seconds and number of samples; of the first GPU medians of load, power, clock and heat; of
        all together joules by NVML's counter; the share of samples in which the most slowed GPU was
        slowed down, and ``throttled``: whether that is more than 1 %. What a GPU does not say is
        None.
    """
    begins = [float(mark["at"]) for mark in marks if mark.get("stage") == "step"]
    if not samples or "started" not in samples or timed < 1 or len(begins) < warmup + timed:
        return None
    first, last = begins[-timed] - samples["started"], _end(marks) - samples["started"]
    columns: Mapping[str, Sequence[Any]] = samples["columns"]
    places = [n for n, at in enumerate(columns.get("seconds", ())) if first <= at <= last]
    found: dict[str, Any] = {"seconds": last - first, "samples": len(places)}
    for name in _MIDDLES:
        found[name] = _middle(_cut(columns.get(name, ()), places))
    unseen = None in samples.get("gpus", ())
    found["joules"] = None if unseen else _joules(columns, places)
    slowed = _slowed(columns, places)
    found["slowed_share"] = slowed
    found["throttled"] = None if slowed is None else slowed > _SHARE
    return found


def columns_of(columns: Mapping[str, Sequence[Any]], name: str) -> list[Sequence[Any]]:
    """One reading of every GPU, the first one's first."""
    return [values for key, values in columns.items() if _OTHERS.sub("", key) == name]


def _joules(columns: Mapping[str, Sequence[Any]], places: Sequence[int]) -> float | None:
    """Of all GPUs; None where one of them has no counter."""
    seen = [_cut(one, places) for one in columns_of(columns, "energy_joules")]
    if not seen or min(map(len, seen)) < 2:
        return None
    return sum(float(one[-1] - one[0]) for one in seen)


def _slowed(columns: Mapping[str, Sequence[Any]], places: Sequence[int]) -> float | None:
    """Share of the samples, of the GPU that was slowed down most."""
    seen = [_cut(one, places) for one in columns_of(columns, "throttle_reasons")]
    shares = [sum(bool(int(bits) & _THROTTLED) for bits in one) / len(one) for one in seen if one]
    return max(shares, default=None)


def _end(marks: Sequence[Mapping[str, Any]]) -> float:
    """When the last step had ended: at the mark after it, where there is one."""
    last = max(n for n, mark in enumerate(marks) if mark.get("stage") == "step")
    return float(marks[min(last + 1, len(marks) - 1)]["at"])


def _cut(values: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [values[n] for n in places if n < len(values) and values[n] is not None]


def _middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
