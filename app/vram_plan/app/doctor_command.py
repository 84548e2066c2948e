"""``vram-plan doctor``: what this machine can run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from vram_plan.app.units import gib

if TYPE_CHECKING:
    from vram_plan.bench.doctor import Report


@click.command()
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table")
def doctor(format_: str) -> None:
    """Say what this machine can run, and what to install for the rest."""
    from vram_plan.bench.doctor import examine

    found = examine()
    if format_ == "json":
        click.echo(json.dumps(found.to_document(), indent=2))
    else:
        _show(found)


def _show(found: Report) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    memory = found.host["memory_bytes"]
    host = f"{found.host['processors']} processors"
    console.print(f"host   {host}, {gib(memory, 1)}" if memory else f"host   {host}")
    for gpu in found.gpus:
        total = (gpu["memory"] or {}).get("total")
        size = gib(total, 1) if total else "memory unknown"
        console.print(f"gpu    {gpu['name']}, {size}, driver {gpu['driver']}")
    if found.gpu_reason is not None:
        console.print(f"gpu    none: {found.gpu_reason}")
    for name, version in found.versions.items():
        console.print(f"       {name} {version or 'is not installed'}")
    console.print()
    for ability in found.abilities:
        mark = Text("yes  ", style="green") if ability.works else Text("no   ", style="red")
        mark.append(ability.command, style="default")
        if not ability.works:
            mark.append(f"\n       missing: {ability.missing}\n       {ability.mend}", style="dim")
        console.print(mark)
