"""``vram-plan bench expect``: a suite's memory beside the committed expectation, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from vram_plan.app.check_text import MARKER
from vram_plan.app.units import signed_gib

if TYPE_CHECKING:
    from vram_plan.bench.regression.expectation import Drift

__all__ = ["expect"]

_REGRESSION, _UNUSABLE, _INSUFFICIENT = 1, 2, 3


@click.command()
@click.argument("suite")
@click.option(
    "--expected",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("vram-plan-expected.json"),
    show_default=True,
)
@click.option("--update", is_flag=True, help="Write today's figures as the expectation.")
@click.option(
    "--level",
    type=click.Choice(("plan", "dry-run")),
    default="dry-run",
    show_default=True,
    help="dry-run runs the installed libraries; plan is arithmetic alone.",
)
@click.option("--comment", type=click.File("w"), help="Write a pull request's comment too.")
@click.pass_context
def expect(
    context: click.Context,
    /,
    suite: str,
    expected: Path,
    update: bool,
    level: str,
    comment: TextIO | None,
) -> None:
    """Compare what a suite needs with what was committed; a library's upgrade shows here.

    Exits with 0 when nothing grew, 1 when something did, 2 when nothing can be compared, 3 when
    there is no expectation for a configuration.

    \b
    Examples:
      vram-plan bench expect suite.toml --update
      vram-plan bench expect suite.toml
    """
    from vram_plan.bench.regression.expectation import compare, expected_of, read_expected
    from vram_plan.bench.runs.suite import find_suite, read_suite

    try:
        jobs = read_suite(find_suite(suite))
        if update:
            text = json.dumps(expected_of(jobs, level), indent=2)
            expected.write_text(text + "\n", encoding="utf-8")
            click.echo(f"{expected}: {len(jobs)} configurations")
            return
        drifts = compare(jobs, level, read_expected(expected))
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from None
    lines = [line for one in drifts for line in _lines(one)]
    click.echo("\n".join(lines))
    if comment is not None:
        comment.write("\n".join([MARKER, "**vram-plan**", "```", *lines, "```", ""]))
    context.exit(_code({one.status for one in drifts}))


def _code(statuses: set[str]) -> int:
    if "regression" in statuses:
        return _REGRESSION
    if "error" in statuses:
        return _UNUSABLE
    return _INSUFFICIENT if "insufficient" in statuses else 0


def _lines(one: Drift) -> list[str]:
    """``transformers 5.22.0 → 5.23.0: +1.80 GiB at the loss``, and the parts of it."""
    if one.failure is not None:
        return [f"error        {one.name}: {one.failure}"]
    change = one.change_bytes
    if change is None:
        return [f"insufficient {one.name}: nothing is expected of it; run with --update"]
    lines = [f"{one.status:<12} {one.name}: {signed_gib(change)} at the peak ({one.instant})"]
    if one.status in ("regression", "improvement"):
        parts = sorted(one.components.items(), key=lambda item: -abs(item[1]))
        shown = ", ".join(f"{name} {signed_gib(size)}" for name, size in parts)
        cause = ", ".join(one.differences) or "the same libraries"
        lines.append(f"{'':<13}{cause}: {shown}")
    return lines
