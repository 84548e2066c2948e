"""The samples of the timed steps alone: loading and warming up would blur power and clocks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["timed_window"]

#: NVML's reasons that are a fault of the machine: hardware slowdown, its thermal and its power
#: brake form (nvml.h ``nvmlClocksThrottleReasonHwSlowdown``, ``…HwThermalSlowdown``,
#: ``…HwPowerBrakeSlowdown``), and software's thermal one.
_THROTTLED = 0x8 | 0x40 | 0x80 | 0x20
_SHARE = 0.01
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
        Seconds and number of samples, medians of load, power, clock and heat, joules by NVML's
        counter, the share of samples in which the GPU was slowed down, and ``throttled``: whether
        that is more than 1 %. What a GPU does not say is None.
    """
    begins = [float(mark["at"]) for mark in marks if mark.get("stage") == "step"]
    if not samples or "started" not in samples or timed < 1 or len(begins) < warmup + timed:
        return None
    first, last = begins[-timed] - samples["started"], _end(marks) - samples["started"]
    columns: Mapping[str, Sequence[Any]] = samples["columns"]
    places = [n for n, at in enumerate(columns.get("seconds", ())) if first <= at <= last]
    found: dict[str, Any] = {"seconds": last - first, "samples": len(places)}
    for name in _MIDDLES:
        found[name] = _middle(_cut(columns, name, places))
    energy = _cut(columns, "energy_joules", places)
    found["joules"] = energy[-1] - energy[0] if len(energy) > 1 else None
    slowed = [bool(int(one) & _THROTTLED) for one in _cut(columns, "throttle_reasons", places)]
    found["slowed_share"] = sum(slowed) / len(slowed) if slowed else None
    found["throttled"] = found["slowed_share"] > _SHARE if slowed else None
    return found


def _end(marks: Sequence[Mapping[str, Any]]) -> float:
    """When the last step had ended: at the mark after it, where there is one."""
    last = max(n for n, mark in enumerate(marks) if mark.get("stage") == "step")
    return float(marks[min(last + 1, len(marks) - 1)]["at"])


def _cut(columns: Mapping[str, Sequence[Any]], name: str, places: Sequence[int]) -> list[Any]:
    values = columns.get(name, ())
    return [values[n] for n in places if n < len(values) and values[n] is not None]


def _middle(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
