"""The plan at a terminal: the total first, then why, where it fits and what would help."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vram_plan.app.speed_text import cost_lines, note_lines, seconds_text, step_line
from vram_plan.app.summary import fit_rows, headline, option_lines, verdict_line
from vram_plan.app.units import gb, gib, signed_gib
from vram_plan.estimator.ledger import COMPONENTS
from vram_plan.estimator.planner import Plan

_COLOURS = {
    "weights": "blue",
    "master_weights": "bright_blue",
    "gradients": "magenta",
    "optimizer_states": "green",
    "activations": "yellow",
    "logits": "bright_yellow",
    "kv_cache": "cyan",
    "buffers": "bright_black",
    "temporaries": "red",
}
_VERDICT_STYLE = {"fits": "green", "uncertain": "yellow", "does not fit": "red"}
_LIMITS = {"host": "  host memory is too small", "nvme": "  NVMe is too small"}
_BAR = 24
_LEAST_SHARE = 0.001
"""Of the step; smaller parts are in the other formats."""


def show(plan: Plan, *, explain: bool) -> None:
    """Print the plan, and the ledger when asked."""
    from vram_plan.estimator.whatif import remedies, switches

    width = None if sys.stdout.isatty() else 80
    console = Console(highlight=False, soft_wrap=False, emoji=False, width=width)
    known = switches(plan)
    console.print(Text(headline(plan), style="bold"))
    console.print()
    console.print(_total(plan))
    console.print(_breakdown(plan))
    console.print(_instants(plan))
    console.print(Text(verdict_line(plan), style=_judged(plan)))
    console.print(_fits(plan))
    _show_speed(console, plan)
    helpful = remedies(plan, known)
    if helpful:
        console.print(Text("smallest changes that make it fit", style="bold"))
        console.print(_switches(helpful))
    console.print(Text("what a switch saves (−) or costs (+) here", style="bold"))
    console.print(_switches(known))
    for line in (*option_lines(plan), *note_lines(plan)):
        console.print(Text(line, style="dim"))
    if explain:
        from vram_plan.app.explain import show_ledger

        show_ledger(console, plan)


def _total(plan: Plan) -> Text:
    memory = plan.memory
    text = Text()
    text.append(f"  {gib(memory.allocated_bytes)}", style="bold cyan")
    text.append(f" ({gb(memory.allocated_bytes)}) per GPU, allocated at the fullest instant: ")
    text.append(memory.peak_instant.replace("_", " "), style="bold")
    text.append(f"\n  {gib(memory.required_bytes)}", style="bold")
    text.append(" required with CUDA context, communication and fragmentation\n")
    line = step_line(plan)
    if line:
        text.append(f"  {line}\n", style="bold green")
    return text


def _show_speed(console: Console, plan: Plan) -> None:
    """Where the seconds of a step go, and what they cost; nothing without a step time."""
    step = plan.step if plan.config.gpu else None
    if step is None:
        return
    table = _plain_table()
    for name, seconds in sorted(step.parts.items(), key=lambda part: -part[1]):
        share = seconds / step.seconds
        if share >= _LEAST_SHARE:
            bar = Text("█" * max(1, round(_BAR * share)), style="green")
            table.add_row(name, seconds_text(seconds), f"{100 * share:.1f} %", bar)
    console.print(Text(f"\none step: {seconds_text(step.seconds)}", style="bold"))
    console.print(table)
    for line in cost_lines(plan):
        console.print(Text(line, style="bold"))
    console.print()


def _breakdown(plan: Plan) -> Table:
    table = _plain_table()
    total = plan.memory.allocated_bytes or 1
    components = plan.memory.components
    for name in COMPONENTS:
        nbytes = components[name]
        if not nbytes:
            continue
        bar = "█" * max(1, round(_BAR * nbytes / total))
        table.add_row(
            name.replace("_", " "),
            gib(nbytes),
            f"{100 * nbytes / total:.1f} %",
            Text(bar, style=_COLOURS[name]),
        )
    table.add_row(
        Text("model states", style="dim"),
        Text(gib(plan.memory.model_states_bytes), style="dim"),
        "",
        Text(f"{gb(plan.memory.model_states_bytes)} resident all through the step", style="dim"),
    )
    for place, nbytes in (("host", plan.memory.host_bytes), ("NVMe", plan.memory.nvme_bytes)):
        if nbytes:
            table.add_row(f"{place} memory", gib(nbytes), "", Text("per node", style="dim"))
    return table


def _instants(plan: Plan) -> Text:
    ordered = sorted(plan.memory.instants.items(), key=lambda item: -item[1])[:4]
    parts = [f"{name.replace('_', ' ')} {gib(nbytes, 1)}" for name, nbytes in ordered]
    return Text(f"\n  instants: {', '.join(parts)}\n", style="dim")


def _fits(plan: Plan) -> Table:
    table = _plain_table()
    for row in fit_rows(plan):
        table.add_row(
            row.gpu,
            gib(row.usable_bytes, 1),
            Text(row.verdict, style=_VERDICT_STYLE[row.verdict]),
            signed_gib(row.headroom_bytes, 1) + _LIMITS.get(row.limit, ""),
        )
    return table


def _switches(found: tuple[object, ...]) -> Table:
    from vram_plan.estimator.whatif import Switch

    table = _plain_table()
    for switch in found:
        assert isinstance(switch, Switch)
        style = "green" if switch.saved_bytes > 0 else "red" if switch.saved_bytes < 0 else "dim"
        table.add_row(
            switch.words,
            Text(signed_gib(-switch.saved_bytes), style=style),
            f"→ {gib(switch.plan.memory.allocated_bytes)}",
        )
    return table


def _judged(plan: Plan) -> str:
    return _VERDICT_STYLE[plan.fits[0].verdict] if plan.config.gpu else "bold"


def _plain_table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(min_width=18, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    return table
