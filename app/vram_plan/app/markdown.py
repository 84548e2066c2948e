"""The plan as Markdown, for an issue, a pull request or a purchase request."""

from __future__ import annotations

import click

from vram_plan.app.speed_text import cost_lines, note_lines, seconds_text, step_line
from vram_plan.app.summary import fit_rows, headline, option_lines, verdict_line
from vram_plan.app.units import gb, gib, signed_gib
from vram_plan.estimator.planner import Plan
from vram_plan.reports.markup import plain


def show(plan: Plan, *, explain: bool) -> None:
    """Print the document."""
    from vram_plan.estimator.whatif import remedies, switches

    memory = plan.memory
    known = switches(plan)
    lines = [
        f"**{plain(headline(plan))}**",
        "",
        f"{gib(memory.allocated_bytes)} ({gb(memory.allocated_bytes)}) per GPU allocated at its "
        f"fullest instant ({memory.peak_instant.replace('_', ' ')}); "
        f"{gib(memory.required_bytes)} required; {verdict_line(plan)}.",
        "",
        "| component | at the peak | share |",
        "|---|---:|---:|",
    ]
    for name, nbytes in memory.components.items():
        if nbytes:
            share = 100 * nbytes / memory.allocated_bytes
            lines.append(f"| {name.replace('_', ' ')} | {gib(nbytes)} | {share:.1f} % |")
    lines += ["", "| GPU | usable | verdict | headroom |", "|---|---:|---|---:|"]
    for fit in fit_rows(plan):
        lines.append(
            f"| {fit.gpu} | {gib(fit.usable_bytes, 1)} | {fit.verdict} "
            f"| {signed_gib(fit.headroom_bytes, 1)} |"
        )
    lines += speed_lines(plan)
    helpful = remedies(plan, known)
    for title, found in (("makes it fit", helpful), ("switch", known)):
        if found:
            lines += ["", f"| {title} | change | then |", "|---|---:|---:|"]
            lines += [
                f"| `{s.words}` | {signed_gib(-s.saved_bytes)} "
                f"| {gib(s.plan.memory.allocated_bytes)} |"
                for s in found
            ]
    lines += ["", *(f"- {plain(line)}" for line in (*option_lines(plan), *note_lines(plan)))]
    if explain:
        lines += ledger_lines(plan)
    click.echo("\n".join(lines))


def speed_lines(plan: Plan) -> list[str]:
    """The step by part, and its cost."""
    step = plan.step if plan.config.gpu else None
    if step is None:
        return []
    lines = [
        "",
        f"{step_line(plan)}.",
        "",
        "| part of the step | time | share |",
        "|---|---:|---:|",
    ]
    for name, seconds in step.parts.items():
        if seconds:
            share = 100 * seconds / step.seconds
            lines.append(f"| {name} | {seconds_text(seconds)} | {share:.1f} % |")
    costs = [f"- {plain(line)}" for line in cost_lines(plan)]
    return [*lines, "", *costs] if costs else lines


def ledger_lines(plan: Plan) -> list[str]:
    """The ledger as a table."""
    lines = [
        "",
        "| component | entry | bytes | alive in | formula | source |",
        "|---|---|---:|---|---|---|",
    ]
    for entry in plan.memory.ledger.entries:
        alive = ", ".join(sorted(entry.alive)) or "all of the step"
        cells = (
            entry.component,
            entry.name,
            f"{entry.bytes:,}",
            alive,
            entry.formula,
            entry.source,
        )
        lines.append("| " + " | ".join(plain(cell) for cell in cells) + " |")
    return lines
