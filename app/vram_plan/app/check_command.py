"""``vram-plan bench check``: did a change make fine-tuning slower or fatter?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from vram_plan.app.bench_options import store_option
from vram_plan.app.check_text import FORMATS, render, sentence

__all__ = ["check"]

_INFRASTRUCTURE = 2


@click.command()
@store_option
@click.option("--new", type=click.IntRange(1), default=3, show_default=True, help="Newest runs.")
@click.option(
    "--noise",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `bench aa --output` wrote: this machine's own thresholds.",
)
@click.option("--format", "style", type=click.Choice(tuple(FORMATS)), default="table")
@click.option("--junit", type=click.File("w"), help="Write JUnit XML to this file too.")
@click.option("--comment", type=click.File("w"), help="Write a pull request's comment too.")
@click.pass_context
def check(
    context: click.Context,
    /,
    folder: Path,
    new: int,
    noise: Path | None,
    style: str,
    **files: TextIO | None,
) -> None:
    """Judge the newest runs of every configuration against those before.

    A time is compared by the median of the newest runs with the median of the 20 before; beyond
    max(3 %, 3 · 1.4826 · MAD) it is suspect, and a regression when two checks in a row see it.
    Allocated bytes may grow by max(1 %, min(256 MiB, 2 %)), reserved ones by 5 %.

    Exits with 0 when nothing got worse, 1 for a regression, 2 when nothing can be read, 3 when
    there are not enough runs.

    \b
    Examples:
      vram-plan bench check --store results
      vram-plan bench check --comment comment.md --junit check.xml
    """
    from vram_plan.bench.regression.check import check as judge
    from vram_plan.bench.regression.check import exit_code
    from vram_plan.bench.runs.store import Store

    if not folder.is_dir():
        raise click.UsageError(f"--store {folder}: no such folder; `vram-plan bench run` makes it")
    store = Store(folder)
    rows = store.index()
    for damaged in store.damaged():
        click.echo(f"left out: {damaged.file}: {damaged.reason}", err=True)
    if not rows:
        raise click.UsageError(f"--store {folder}: no run in it that can be read")
    findings = judge(rows, new=new, floors=_floors(noise))
    click.echo(render(findings, style))
    for name, file in files.items():
        if file is not None:
            file.write(render(findings, "junit" if name == "junit" else "markdown") + "\n")
    if style != "table":
        click.echo(sentence(findings), err=True)
    context.exit(exit_code(findings))


def _floors(noise: Path | None) -> dict[str, float]:
    """Series key → the smallest change that counts, as `bench aa` measured it."""
    if noise is None:
        return {}
    try:
        found = json.loads(noise.read_text(encoding="utf-8"))
        return {str(key): float(one["floor"]) for key, one in found["series"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise click.UsageError(f"--noise {noise}: not what `bench aa --output` writes") from None
