"""``vram-plan bench ab`` and ``bench aa``: two sides in turn, and one side against itself."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from vram_plan.app.check_text import FORMATS, render

if TYPE_CHECKING:
    from vram_plan.bench.regression.noise import Noise
    from vram_plan.bench.regression.sides import Side

__all__ = ["aa", "ab"]

_PASSES_ON = {"ignore_unknown_options": True}


_suite = click.argument("suite", nargs=-1, type=click.UNPROCESSED, required=True)


@click.command(context_settings=_PASSES_ON)
@click.option("--base", required=True, help="Git reference, or the interpreter of an environment.")
@click.option("--head", required=True, help="Likewise.")
@click.option("--pairs", type=click.IntRange(3), default=5, show_default=True)
@click.option("--install", help="Command that installs a reference.  [default: pip, with bench]")
@click.option("--base-env", multiple=True, metavar="NAME=VALUE", help="Set for the base alone.")
@click.option("--head-env", multiple=True, metavar="NAME=VALUE", help="Set for the head alone.")
@click.option("--format", "style", type=click.Choice(tuple(FORMATS)), default="table")
@_suite
@click.pass_context
def ab(
    context: click.Context,
    /,
    suite: tuple[str, ...],
    pairs: int,
    style: str,
    **sides: str | tuple[str, ...] | None,
) -> None:
    """Compare two versions by interleaved pairs of runs in fresh processes.

    SUITE is what `bench run` takes: a suite, or plan options. A side is a git reference of this
    repository, checked out and installed in its own environment, or the path of an interpreter
    that has one. Where a time looks worse, as many pairs again confirm it.

    Exits with 0 when nothing got worse, 1 for a regression, 2 when a side cannot run, 3 when there
    are not enough pairs.

    \b
    Examples:
      vram-plan bench ab --base main --head HEAD smoke
      vram-plan bench ab --base old/bin/python --head new/bin/python --model gpt2 --layers 2
    """
    from vram_plan.bench.regression.check import exit_code
    from vram_plan.bench.regression.pairs import compare_sides

    try:
        with _both(sides) as (base, head):
            findings = compare_sides(base, head, suite, pairs=pairs, say=_say)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    finally:
        _say("")
    click.echo(render(findings, style))
    context.exit(exit_code(findings))


@contextmanager
def _both(given: dict[str, str | tuple[str, ...] | None]) -> Iterator[tuple[Side, Side]]:
    from dataclasses import replace

    from vram_plan.bench.regression.pairs import environment_of
    from vram_plan.bench.regression.sides import INSTALL, drop_checkouts, from_ref

    with tempfile.TemporaryDirectory(prefix="vram-plan-sides-") as place:
        folder, made = Path(place), []
        try:
            for name in ("base", "head"):
                _say(f"preparing {name}")
                install = str(given["install"] or INSTALL)
                side = from_ref(name, str(given[name]), folder=folder, install=install)
                words = given[f"{name}_env"] or ()
                made.append(replace(side, environment=environment_of(tuple(words))))
            yield made[0], made[1]
        finally:
            drop_checkouts(folder)


@click.command(context_settings=_PASSES_ON)
@click.option("--runs", type=click.IntRange(2), default=10, show_default=True)
@click.option("--output", type=click.File("w"), help="Thresholds for `bench check --noise`.")
@_suite
def aa(suite: tuple[str, ...], runs: int, output: TextIO | None) -> None:
    """Run the same thing again and again: this machine's noise, and what it can detect.

    SUITE is what `bench run` takes: a suite, or plan options.

    \b
    Example:
      vram-plan bench aa --runs 10 --output noise.json smoke
    """
    from vram_plan.bench.regression.noise import measure_noise
    from vram_plan.bench.regression.sides import Side, run_side

    side, rows = Side(name="this machine", python=Path(sys.executable)), []
    try:
        for number in range(runs):
            _say(f"run {number + 1} of {runs}")
            rows += run_side(side, suite)
        found = measure_noise(rows)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    finally:
        _say("")
    if not found:
        raise click.UsageError("no configuration ended well twice; see `vram-plan bench run`")
    for one in found:
        click.echo(_noise_line(one))
    if output is not None:
        series = {one.key: asdict(one) for one in found}
        output.write(json.dumps({"schema": "vram-plan/noise/1", "series": series}, indent=2) + "\n")


def _noise_line(one: Noise) -> str:
    return (
        f"{one.series}: {one.runs} runs vary by {one.variation:.2%} (drift {one.drift:+.2f}, "
        f"outliers {one.outliers:.0%}); counts from {one.floor:.1%}, "
        f"found in 95 % of checks from {one.detectable:.1%}"
    )


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", err=True, nl=False)
