"""One axis compared: GPU against GPU, method against method, version against version.

Everything else is held: only documents that differ in nothing but the axis are set side by side.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from vram_plan.bench.regression.robust import median_interval
from vram_plan.bench.regression.rules import FLOOR, allocated_limit
from vram_plan.bench.runs.surroundings import surroundings_of
from vram_plan.reports.page.figures import COLOURS, blank
from vram_plan.reports.page.frames import names_of
from vram_plan.reports.page.sections import Section, Table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Side", "compared", "comparison_sections", "verdict"]

_FOLLOWS = {
    "gpu": ("gpu", "gpus_per_node", "node"),
    "method": ("method", "quantization", "double_quant", "adapter_dtype", "kbit_preparation"),
    "engine": ("engine", "zero", "fsdp", "weights_dtype"),
}
"""Options that go with the axis when it changes."""
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One value of the axis within one comparison.

    Attributes:
        value: of the axis.
        allocated: peak bytes, measured or else predicted, of every document.
        seconds: of an optimizer step, measured or else predicted, of every document.
    """

    value: str
    allocated: tuple[float, ...]
    seconds: tuple[float, ...]


def compared(documents: Sequence[Mapping[str, Any]], axis: str) -> dict[str, list[Side]]:
    """What is alike → its sides, where there are two at least.

    Args:
        documents: measurements and plans.
        axis: an option, ``model``, ``gpu``, or the name of a library.

    Raises:
        ValueError: if nothing differs in the axis alone.
    """
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for document in documents:
        sides = groups.setdefault(_rest(document, axis), {})
        sides.setdefault(_value(document, axis), []).append(document)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        raise ValueError(f"--axis {axis}: no two of these documents differ in it alone")
    _, names = names_of([next(iter(group.values()))[0] for group in several])
    return {
        name: [_side(value, some) for value, some in group.items()]
        for name, group in zip(names, several, strict=True)
    }


def _value(document: Mapping[str, Any], axis: str) -> str:
    if axis == "model":
        return str(document["model"]["name"])
    seen = surroundings_of(document)
    return str(seen.get(axis) or document["config"].get(axis))


def _rest(document: Mapping[str, Any], axis: str) -> str:
    """All that must be alike."""
    left_out = _FOLLOWS.get(axis, (axis,))
    config = {k: v for k, v in document["config"].items() if k not in left_out}
    config.pop("model", None)
    seen = {k: v for k, v in surroundings_of(document).items() if k not in (axis, "commit")}
    if axis == "gpu":
        seen.pop("driver", None)
    model = None if axis == "model" else document["model"]["name"]
    return json.dumps([config, seen, model, "outcome" in document], sort_keys=True, default=str)


def _side(value: str, documents: Sequence[Mapping[str, Any]]) -> Side:
    allocated, seconds = [], []
    for document in documents:
        size = (document.get("memory") or {}).get("allocated_bytes")
        if size:
            allocated.append(float(size))
        steps = document.get("step_seconds") or []
        step = document.get("step") or {}
        if steps:
            seconds.append(statistics.median(steps))
        elif step.get("seconds"):
            seconds.append(float(step["seconds"]))
    return Side(value=value, allocated=tuple(allocated), seconds=tuple(seconds))


def verdict(base: Sequence[float], other: Sequence[float], *, limit: float) -> str:
    """The difference in words; a tie where it is within the limit or the spreads overlap."""
    if not base or not other:
        return "–"
    change = statistics.median(other) / statistics.median(base) - 1
    if abs(change) <= limit or _overlap(base, other):
        return f"tie ({change:+.1%})"
    return f"{change:+.1%}"


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether what was seen on both sides overlaps; single figures have no spread."""
    if len(one) < 2 or len(other) < 2:
        return False
    (low, high), (least, most) = _spread(one), _spread(other)
    return low <= most and least <= high


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high, _ = median_interval(values) or (min(values), max(values), 0.0)
    return low, high


def comparison_sections(documents: Sequence[Mapping[str, Any]], axis: str) -> list[Section]:
    """A section for each configuration that was seen under several values of the axis."""
    return [
        Section(
            title=f"{axis}: {name}" if name != "the same" else f"By {axis}",
            text="Differences from the first row. A tie is within the noise: "
            f"{FLOOR:.0%} of time, the limit of allocated bytes, or overlapping spreads.",
            figure=_bars(axis, sides),
            table=_table(axis, sides),
            folded=False,
        )
        for name, sides in compared(documents, axis).items()
    ]


def _table(axis: str, sides: Sequence[Side]) -> Table:
    first, rows = sides[0], []
    for side in sides:
        size = statistics.median(side.allocated) if side.allocated else None
        step = statistics.median(side.seconds) if side.seconds else None
        limit = allocated_limit(statistics.median(first.allocated)) if first.allocated else 0.0
        base = statistics.median(first.allocated) if first.allocated else 1.0
        rows.append(
            (
                side.value,
                f"{size / _GIB:.3f} GiB" if size else "–",
                "–"
                if side is first
                else verdict(first.allocated, side.allocated, limit=limit / base),
                f"{step:.4g} s" if step else "–",
                "–" if side is first else verdict(first.seconds, side.seconds, limit=FLOOR),
                str(max(len(side.allocated), len(side.seconds))),
            )
        )
    head = (axis, "peak memory", "difference", "step", "difference", "n")
    return Table(head=head, rows=tuple(rows))


def _bars(axis: str, sides: Sequence[Side]) -> Figure:
    figure = blank(axis, "GiB at the peak")
    known = [side for side in sides if side.allocated]
    middles = [statistics.median(side.allocated) / _GIB for side in known]
    spreads = [[bound / _GIB for bound in _spread(side.allocated)] for side in known]
    figure.add_bar(
        x=[escape(side.value) for side in known],
        y=middles,
        marker={"color": COLOURS[0]},
        error_y={
            "type": "data",
            "array": [high - m for m, (_, high) in zip(middles, spreads, strict=True)],
            "arrayminus": [m - low for m, (low, _) in zip(middles, spreads, strict=True)],
        },
        hovertemplate="%{y:.3f} GiB<extra></extra>",
    )
    figure.update_layout(showlegend=False)
    return figure
