"""A dry run at a terminal: the peak beside the plan's, the instants, the components, the time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vram_plan.app.summary import headline
from vram_plan.app.units import gb, gib
from vram_plan.estimator.ledger import COMPONENTS
from vram_plan.estimator.sharding.zero_parts import REDUCTION

if TYPE_CHECKING:
    from vram_plan.bench.measurement import Measurement
    from vram_plan.bench.trace import Trace
    from vram_plan.estimator.planner import Plan

_WORTH_TELLING = 5 * 2**20
_LAYERS = "backward of the layers"
_CLOSE, _FAR = 0.005, 0.02
"""Shares of the peak: green up to the first, red beyond the second."""


def show(seen: Measurement, planned: Plan, *, trace: Trace | None, timeline: bool) -> None:
    """Print it; ``trace`` adds what is alive at the peak, ``timeline`` the picture."""
    console = Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 80)
    console.print(Text(headline(planned), style="bold"))
    console.print()
    if seen.outcome != "ok":
        console.print(Text(f"{seen.outcome}: {seen.error}", style="red"))
        return
    console.print(_total(seen, planned))
    console.print(_instants(seen, planned))
    console.print(_components(seen, planned))
    if timeline:
        from vram_plan.app.timeline import picture

        console.print(picture(seen.timeline, width=min(console.width, 100)))
    if trace is not None:
        _alive(console, trace)
    for line in _remarks(seen):
        console.print(Text(line, style="dim"))


def _total(seen: Measurement, planned: Plan) -> Text:
    peak, expected = seen.peak, planned.memory.allocated_bytes
    assert peak is not None
    text = Text()
    text.append(f"  {gib(peak.bytes)}", style="bold cyan")
    text.append(f" ({gb(peak.bytes)}) per GPU at the step's peak: ")
    text.append(peak.name.replace("_", " "), style="bold")
    text.append(f"\n  {gib(expected)}", style="bold")
    text.append(" planned, ")
    text.append(*_difference(expected, peak.bytes, peak.bytes))
    if seen.reserved_bytes is not None:
        text.append(f"\n  {gib(seen.reserved_bytes)}", style="bold")
        text.append(" reserved by PyTorch's caching allocator")
    if seen.host_bytes >= _WORTH_TELLING:
        text.append(f"\n  {gib(seen.host_bytes)}", style="bold")
        text.append(" in host memory")
    text.append("\n")
    return text


def _instants(seen: Measurement, planned: Plan) -> Table:
    table = _table("instant")
    expected = _joined(planned.memory.instants)
    whole = seen.allocated_bytes or 1
    for name, size in _joined({i.name: i.bytes for i in seen.instants}).items():
        found = expected.get(name)
        table.add_row(
            name.replace("_", " "),
            gib(size),
            gib(found) if found is not None else "–",
            Text(*_difference(found, size, whole)) if found is not None else "",
        )
    return table


def _joined(instants: dict[str, int]) -> dict[str, int]:
    """The layers' backward passes as one, DeepSpeed's reductions with them.

    The plan knows the ends of the stack, a trace all of it.
    """
    found: dict[str, int] = {}
    for name, size in instants.items():
        shown = _LAYERS if "layer" in name or name == REDUCTION else name
        found[shown] = max(size, found.get(shown, 0))
    return found


def _components(seen: Measurement, planned: Plan) -> Table:
    table = _table("at the peak")
    peak = seen.peak
    assert peak is not None
    memory = planned.memory
    instant = peak.name if peak.name in memory.instants else memory.peak_instant
    parts, expected = peak.components or {}, memory.ledger.components(instant)
    for name in COMPONENTS:
        ours, theirs = expected.get(name, 0), parts.get(name, 0)
        if ours or theirs:
            table.add_row(
                name.replace("_", " "),
                gib(theirs),
                gib(ours),
                Text(*_difference(ours, theirs, peak.bytes)),
            )
    return table


def _difference(planned: int, seen: int, whole: int) -> tuple[str, str]:
    """Planned less seen, as a share of the peak, with its colour."""
    share = (planned - seen) / whole if whole else 0.0
    style = "green" if abs(share) <= _CLOSE else "yellow" if abs(share) <= _FAR else "red"
    sign = "−" if share < 0 else "+"
    return f"{sign}{100 * abs(share):.2f} %", style


def _alive(console: Console, trace: Trace) -> None:
    console.print(Text("largest at the peak", style="bold"))
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for block in trace.alive_at_peak():
        shape = "×".join(map(str, block.shape)) or "scalar"
        groups.setdefault((block.component, block.op, shape, block.dtype), []).append(block.bytes)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    for (component, op, shape, dtype), sizes in sorted(
        groups.items(), key=lambda item: -sum(item[1])
    )[:20]:
        table.add_row(gib(sum(sizes), 3), f"{len(sizes)} × {shape}", dtype, component, op)
    console.print(table)


def _remarks(seen: Measurement) -> list[str]:
    lines = []
    if seen.extended_from:
        depths = " and ".join(map(str, seen.extended_from))
        lines.append(
            f"{depths} layers traced and extended to {seen.layers}: every layer does the same"
        )
    if seen.virtual_ranks:
        lines.append(f"one rank of {seen.virtual_ranks} on a fake process group")
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in seen.seconds.items())
    libraries = seen.environment.get("libraries", {})
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items() if version)
    return [*lines, *(f"note: {note}" for note in seen.notes), spent, versions]


def _table(title: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(title, min_width=22, no_wrap=True)
    for name in ("dry run", "plan", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    return table
