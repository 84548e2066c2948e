"""``vram-plan models`` and ``vram-plan gpus``: what is known, filtered."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from vram_plan.app.units import GIB, count

_FORMAT = click.option(
    "--format",
    "format_",
    type=click.Choice(("table", "json", "csv")),
    default="table",
    help="How to print.  [default: table]",
)


@click.command()
@click.argument("text", required=False, default="")
@click.option("--family", metavar="NAME", help="Only this family or model_type.")
@click.option("--at-least", type=float, metavar="BILLION", help="Smallest number of parameters.")
@click.option("--at-most", type=float, metavar="BILLION", help="Largest number of parameters.")
@_FORMAT
def models(
    text: str, family: str | None, at_least: float | None, at_most: float | None, format_: str
) -> None:
    """List the models that are known: those whose name contains TEXT.

    \b
    Examples:
      vram-plan models qwen2.5
      vram-plan models --family mixtral
      vram-plan models --at-least 6 --at-most 9
    """
    from vram_plan.profiles.models import catalogue

    rows = []
    for entry in catalogue():
        model_type = str(entry.config["model_type"])
        names = " ".join((entry.name, *entry.aliases)).lower()
        if text.lower() not in names or (family and family not in {entry.family, model_type}):
            continue
        if at_least is not None and entry.parameters < at_least * 1e9:
            continue
        if at_most is not None and entry.parameters > at_most * 1e9:
            continue
        rows.append(
            {
                "model": entry.name,
                "alias": entry.aliases[0] if entry.aliases else "",
                "model_type": model_type,
                "parameters": entry.parameters,
                "source": entry.source,
            }
        )
    rows.sort(key=lambda row: (str(row["model_type"]), row["parameters"]))
    if not text and not family and at_least is None and at_most is None:
        rows = _size_classes() + rows
    _print(rows, format_, human={"parameters": count}, hidden=("source",))


def _size_classes() -> list[dict[str, Any]]:
    from vram_plan.profiles.sizes import size_classes

    return [
        {
            "model": size.size,
            "alias": "",
            "model_type": "size class",
            "parameters": size.parameters,
            "source": size.source,
        }
        for size in size_classes()
    ]


@click.command()
@click.argument("text", required=False, default="")
@click.option("--vendor", metavar="NAME", help="NVIDIA or AMD.")
@click.option("--kind", type=click.Choice(("consumer", "workstation", "datacentre")))
@click.option("--at-least", type=float, metavar="GIB", help="Smallest memory.")
@_FORMAT
def gpus(
    text: str, vendor: str | None, kind: str | None, at_least: float | None, format_: str
) -> None:
    """List the GPUs that are known: those whose name contains TEXT.

    \b
    Examples:
      vram-plan gpus h100
      vram-plan gpus --kind consumer --at-least 16
      vram-plan gpus --vendor AMD --format csv
    """
    from vram_plan.profiles.gpus import load_gpus

    rows = []
    for gpu in sorted(load_gpus().values(), key=lambda gpu: (gpu.memory_bytes, gpu.name)):
        if text.lower() not in gpu.name or (vendor and vendor.lower() != gpu.vendor.lower()):
            continue
        if (kind and kind != gpu.kind) or gpu.memory_bytes < (at_least or 0) * GIB:
            continue
        rows.append(
            {
                "gpu": gpu.name,
                "memory": gpu.memory_bytes,
                "usable": gpu.usable_bytes,
                "tflops": gpu.peak_flops.get("bf16") or gpu.peak_flops.get("fp16"),
                "bandwidth": gpu.memory_bandwidth_bytes_per_s,
                "usd_per_hour": gpu.rental_usd_per_hour.usd if gpu.rental_usd_per_hour else None,
                "source": gpu.source,
            }
        )
    human = {
        "memory": lambda value: f"{value / GIB:.0f} GiB",
        "usable": lambda value: f"{value / GIB:.1f} GiB",
        "tflops": lambda value: f"{value / 1e12:,.0f} TFLOP/s",
        "bandwidth": lambda value: f"{value / 1e12:.2f} TB/s",
        "usd_per_hour": lambda value: f"${value:.2f}/h",
    }
    _print(rows, format_, human=human, hidden=("source",))


def _print(
    rows: list[dict[str, Any]], format_: str, *, human: dict[str, Any], hidden: tuple[str, ...]
) -> None:
    if format_ == "json":
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if format_ == "csv":
        _print_csv(rows)
        return
    if not rows:
        raise click.UsageError("nothing matches; without arguments all entries are listed")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    columns = [name for name in rows[0] if name not in hidden]
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right" if name in human else "left")
    for row in rows:
        cells = []
        for name in columns:
            value = row[name]
            shown = human[name](value) if name in human and value is not None else value
            cells.append("" if shown is None else str(shown))
        table.add_row(*cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"{len(rows)} entries; every one has a source (--format json)", style="dim")


def _print_csv(rows: list[dict[str, Any]]) -> None:
    import csv

    if not rows:
        return
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
