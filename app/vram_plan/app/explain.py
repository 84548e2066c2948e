"""``--explain``: the ledger, every byte with its formula and its source."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vram_plan.app.speed_text import seconds_text, transfer_documents
from vram_plan.app.units import gb, gib
from vram_plan.estimator.planner import Plan


def show_ledger(console: Console, plan: Plan) -> None:
    """Print what is alive at the peak, then every other entry."""
    ledger, peak = plan.memory.ledger, plan.memory.peak_instant
    console.print()
    console.print(Text(f"ledger at the peak: {peak.replace('_', ' ')}", style="bold"))
    alive = ledger.at(peak)
    _entries(console, alive)
    console.print(
        f"  {gib(plan.memory.allocated_bytes)} in all ({plan.memory.allocated_bytes:,} bytes)"
    )
    others = [entry for entry in ledger.entries if entry not in alive]
    if others:
        console.print()
        console.print(Text("entries that live in other instants or places", style="bold"))
        _entries(console, others, where=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for instant, nbytes in plan.memory.instants.items():
        table.add_row(instant.replace("_", " "), gib(nbytes), f"{nbytes:,} bytes")
    console.print()
    console.print(Text("instants", style="bold"))
    console.print(table)
    _transfers(console, plan)


def _transfers(console: Console, plan: Plan) -> None:
    found = transfer_documents(plan)
    if not found:
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for one in found:
        behind = f"behind the {one['overlaps']}" if one["overlaps"] else "waited for"
        times = f"{one['count']:,} ×"
        table.add_row(one["name"], gb(one["bytes"]), times, seconds_text(one["seconds"]), behind)
    console.print()
    console.print(Text("what travels in one step, before anything hides", style="bold"))
    console.print(table)


def _entries(console: Console, entries: object, *, where: bool = False) -> None:
    from vram_plan.estimator.ledger import Entry

    assert isinstance(entries, (list, tuple))
    for entry in entries:
        assert isinstance(entry, Entry)
        console.print(
            Text.assemble(
                f"  {gib(entry.bytes):>12}  ", (entry.component, "cyan"), f"  {entry.name}"
            )
        )
        console.print(Text(f"                {entry.formula}", style="dim"))
        console.print(Text(f"                [{entry.source}]", style="dim"))
        if where:
            lives = ", ".join(sorted(entry.alive)) or "all of the step"
            place = "" if entry.place == "device" else f"in {entry.place} memory; "
            console.print(Text(f"                {place}alive in: {lives}", style="dim"))
