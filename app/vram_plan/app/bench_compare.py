"""``vram-plan bench compare`` at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from vram_plan.app.units import gib

__all__ = ["show_comparison"]

_WORDS = {True: "yes", False: "no", None: "–"}


def show_comparison(found: Mapping[str, Any]) -> None:
    """Every run with its errors, then the boundaries, then all errors together."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for run in found["runs"]:
        console.print(f"{run['name']}  [dim]{run['id'][-12:]}[/dim]")
        if run["outcome"] != "ok":
            console.print(f"  {run['outcome']}: {run['error']}", markup=False)
            continue
        console.print(_figures(run))
        _say(console, run)
    for one in found["boundaries"]:
        console.print(f"boundary  {_boundary(one)}", markup=False)
    for name, what in (("allocated", "peak allocated"), ("step", "step time")):
        console.print(f"{what}: {_summary(found['summary'][name])}", markup=False)


def _figures(run: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("measured", "predicted", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("peak allocated", *_bytes(run["allocated"]))
    for name, pair in run["instants"].items():
        table.add_row(f"  {name}", *_bytes(pair), style="dim")
    for name, pair in run["components"].items():
        table.add_row(f"  of it {name}", *_bytes(pair), style="dim")
    if not run["components"]:
        table.add_row("  components", "not told apart", "", "", style="dim")
    if run["step"]["measured"] is not None:
        table.add_row("step", *_seconds(run["step"]))
    return table


def _bytes(pair: Mapping[str, Any]) -> tuple[str, str, str]:
    shown = [gib(pair[name], 3) if pair[name] is not None else "–" for name in _SIDES]
    return shown[0], shown[1], _error(pair)


def _seconds(pair: Mapping[str, Any]) -> tuple[str, str, str]:
    shown = [f"{pair[name]:.4g} s" if pair[name] is not None else "–" for name in _SIDES]
    return shown[0], shown[1], _error(pair)


_SIDES = ("measured", "predicted")


def _error(pair: Mapping[str, Any]) -> str:
    return f"{100 * pair['error']:+.2f} %" if pair["error"] is not None else "–"


def _say(console: Console, run: Mapping[str, Any]) -> None:
    verdict = run["verdict"]
    if verdict:
        words = [f"{name.replace('_', ' ')} {_WORDS[verdict[name]]}" for name in _VERDICTS]
        console.print("  " + "; ".join([*words, *verdict["reasons"]]), markup=False)
    for note in run["notes"]:
        console.print(f"  {note}", markup=False)


_VERDICTS = ("warm", "steady", "loss_fell")


def _boundary(one: Mapping[str, Any]) -> str:
    oom, planned = one["smallest_oom"], one["predicted"]
    return (
        f"{one['name']}: micro-batch {one['largest_ok'] or '–'} ran, "
        f"{oom if oom is not None else 'none'} was too much; "
        f"the plan says {planned if planned is not None else '–'}"
    )


def _summary(one: Mapping[str, Any]) -> str:
    if not one["n"]:
        return "nothing to compare"
    return (
        f"error over {one['n']} runs: median {100 * one['median']:.3f} %, "
        f"95 % within {100 * one['p95']:.3f} %, largest {100 * one['max']:.3f} %"
    )
