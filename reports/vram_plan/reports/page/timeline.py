"""Memory over the time of one run, thinned out without losing peaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["downsampled", "is_sampled", "timeline_frame"]

_COLUMNS = {
    "used_bytes": "device (NVML)",
    "process_bytes": "process (NVML)",
    "host_bytes": "process (host)",
}


def is_sampled(document: Mapping[str, Any]) -> bool:
    """Whether the sampler saw memory during the run."""
    columns = (document.get("samples") or {}).get("columns") or {}
    return any(isinstance(size, int | float) for name in _COLUMNS for size in columns.get(name, ()))


def timeline_frame(document: Mapping[str, Any], most: int = 2000) -> pd.DataFrame:
    """Columns ``seconds, bytes, source``: what the sampler saw of one run.

    Args:
        document: a measurement.
        most: points of each source that are kept.
    """
    import pandas as pd

    columns = (document.get("samples") or {}).get("columns") or {}
    seconds = columns.get("seconds") or []
    rows = []
    for column, source in _COLUMNS.items():
        seen = [
            (at, size)
            for at, size in zip(seconds, columns.get(column) or [], strict=False)
            if isinstance(size, int | float) and math.isfinite(size)
        ]
        rows += [{"seconds": at, "bytes": b, "source": source} for at, b in downsampled(seen, most)]
    return pd.DataFrame(rows, columns=["seconds", "bytes", "source"])


def downsampled(points: Sequence[tuple[float, float]], most: int) -> Sequence[tuple[float, float]]:
    """At most ``most`` points, the lowest and the highest of every stretch among them."""
    if len(points) <= most or most < 2:
        return points
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        some = points[start : start + stretch]
        ends = {
            min(range(len(some)), key=lambda i: some[i][1]),
            max(range(len(some)), key=lambda i: some[i][1]),
        }
        kept += [some[i] for i in sorted(ends)]
    return kept
