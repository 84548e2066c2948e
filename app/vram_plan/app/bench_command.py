"""``vram-plan bench``: real fine-tunes on this machine, stored beside their predictions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from vram_plan.app.ab_command import aa, ab
from vram_plan.app.bench_options import OF_A_RUN, run_options, store_option
from vram_plan.app.calibrate_command import calibrate
from vram_plan.app.check_command import check
from vram_plan.app.expect_command import expect
from vram_plan.app.options import configuration, given

if TYPE_CHECKING:
    from vram_plan.bench.runs.job import Job
    from vram_plan.bench.runs.store import Store

_WITH_SUITE = frozenset({"suite", "folder", "yes", "again", "hertz"})
_MOST_CELLS = 1000


@click.group()
def bench() -> None:
    """Run real fine-tunes on this machine and keep what was seen beside the prediction.

    \b
    Examples:
      vram-plan bench run smoke
      vram-plan bench run my-suite.toml --store results
      vram-plan bench run --model qwen2.5-0.5b --layers 4 --method lora --seq-len 256
      vram-plan bench run --model qwen2.5-0.5b --layers 4 --zero 3 --ranks virtual:8
      vram-plan bench list
      vram-plan bench show 3f2a
      vram-plan bench compare
    """


for _command in (calibrate, check, ab, aa, expect):
    bench.add_command(_command)


class _RunCommand(click.Command):
    """``--model`` may be left out where a suite is named."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        for parameter in self.params:
            if parameter.name == "model":
                parameter.required = False


@bench.command(cls=_RunCommand)
@click.argument("suite", required=False)
@configuration
@run_options
@click.option("--hertz", type=float, default=10.0, show_default=True, help="Samples a second.")
@click.option("--again", is_flag=True, help="Run what is stored already once more: a history.")
@click.option("--yes", is_flag=True, help=f"Run more than {_MOST_CELLS:,} cells.")
@store_option
@click.pass_context
def run(context: click.Context, /, suite: str | None, folder: Path, **values: Any) -> None:
    """Run a suite (a TOML file or a shipped name), or one configuration given by options.

    Runs that the store has are not run again: the same command resumes.
    """
    from vram_plan.bench.runs.boundary import expanded
    from vram_plan.bench.runs.device import named_gpu, require_libraries
    from vram_plan.bench.runs.store import Store
    from vram_plan.bench.runs.sweep import sweep

    yes, again, hertz = values.pop("yes"), values.pop("again"), values.pop("hertz")
    try:
        require_libraries()
        if suite is not None:
            _refuse_options(context)
        most = None if yes else _MOST_CELLS
        asked = _jobs(suite, values, most)
        devices = {job.device for job in asked}
        jobs = tuple(expanded(asked, named_gpu("cuda") if "cuda" in devices else None))
        store = Store(folder)
        failed = _report(sweep(jobs, store, hertz=hertz, say=_say, again=again), len(jobs))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if failed:
        context.exit(1)


def _refuse_options(context: click.Context) -> None:
    """A suite says itself what is run: options beside it would be ignored."""
    typed = click.core.ParameterSource.COMMANDLINE
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _WITH_SUITE and context.get_parameter_source(name) is typed:
            raise ValueError(f"{parameter.opts[0]} with a suite: write it into the suite's file")


def _jobs(suite: str | None, values: dict[str, Any], most: int | None) -> tuple[Job, ...]:
    from vram_plan.bench.runs.suite import find_suite, read_suite, shipped

    how = {name: values.pop(name) for name in OF_A_RUN}
    model = values.pop("model")
    if suite is not None:
        return read_suite(find_suite(suite), most)
    if model is None:
        raise ValueError(
            f"bench run needs a suite or --model; shipped suites: {', '.join(shipped())}"
        )
    if values.pop("calibration", None) is not None:
        raise ValueError("--calibration: leave it out; the profile of this machine is used")
    given(dict(values))  # refuses what is not known
    options = {name: value for name, value in values.items() if value is not None}
    if "zero" in options:
        options["zero"] = int(options["zero"])
    if most is not None and how["repeats"] > most:
        raise ValueError(f"--repeats {how['repeats']:,}: add --yes if that is meant")
    return _single(model, options, how)


def _single(model: str, options: dict[str, Any], how: dict[str, Any]) -> tuple[Job, ...]:
    from vram_plan.bench.runs.device import default_device
    from vram_plan.bench.runs.job import Job

    repeats = how.pop("repeats")
    how["device"] = how["device"] or default_device()
    return tuple(Job(model=model, options=options, repeat=n, **how) for n in range(repeats))


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K  {text}", err=True, nl=False)


def _report(cells: Any, count: int) -> bool:
    """One line a run as it ends; whether one of them was no measurement of memory."""
    from vram_plan.app.bench_table import cell_line

    failed = False
    for number, cell in enumerate(cells, 1):
        if sys.stderr.isatty():
            click.echo("\r\033[K", err=True, nl=False)
        click.echo(f"[{number}/{count}] {cell_line(cell)}")
        outcome = cell.measurement.outcome if cell.measurement else cell.known
        failed |= outcome not in ("ok", "oom", "elsewhere")
    return failed


@bench.command(name="list")
@store_option
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table")
def list_(folder: Path, format_: str) -> None:
    """The stored runs, oldest first."""
    from vram_plan.app.bench_table import show_runs

    rows = _existing(folder).index()
    if format_ == "json":
        click.echo(json.dumps(rows, indent=2))
    else:
        show_runs(rows)


@bench.command()
@click.argument("run_id")
@store_option
def show(run_id: str, folder: Path) -> None:
    """One stored run as JSON; the beginning or end of its id is enough."""
    store = _existing(folder)
    rows = store.index()
    found = [
        row["file"] for row in rows if row["id"].startswith(run_id) or row["id"].endswith(run_id)
    ]
    if len(found) != 1:
        problem = "no run" if not found else f"{len(found)} runs"
        raise click.UsageError(f"{problem} of this id: {run_id}; see `vram-plan bench list`")
    click.echo(json.dumps(store.read(found[0]), indent=2, ensure_ascii=False))


@bench.command()
@store_option
@click.option("--format", "format_", type=click.Choice(("table", "json")), default="table")
def compare(folder: Path, format_: str) -> None:
    """The stored runs beside their predictions: memory by instant and component, time, what fits.

    A run also says itself whether it was warm and steady.
    """
    from vram_plan.app.bench_compare import show_comparison
    from vram_plan.bench.runs.compare import comparison

    found = comparison(_documents(_existing(folder)))
    if format_ == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        show_comparison(found)


@bench.command()
@click.option("--output", type=click.File("w"), default="-", help="A file.  [default: stdout]")
@click.option("--redact", is_flag=True, help="Whole runs as JSON lines, nothing personal in them.")
@store_option
def export(output: TextIO, redact: bool, folder: Path) -> None:
    """Write the stored runs as rows for `vram-plan validate --data FILE`.

    Rows hold no names of hosts, users or folders, so that they can be shared. With --redact whole
    runs are written instead, from which such names are dropped.
    """
    from vram_plan.bench.runs.export import write_rows
    from vram_plan.bench.runs.redact import redacted

    documents = _documents(_existing(folder))
    if not redact:
        write_rows(documents, output)
        return
    for document in documents:
        output.write(json.dumps(redacted(document), ensure_ascii=False) + "\n")


def _documents(store: Store) -> list[dict[str, Any]]:
    """What can be read; what cannot is told."""
    from vram_plan.bench.runs.store import Damaged

    documents = []
    for found in store.documents():
        if isinstance(found, Damaged):
            click.echo(f"left out: {found.file}: {found.reason}", err=True)
        else:
            documents.append(found)
    return documents


def _existing(folder: Path) -> Store:
    from vram_plan.bench.runs.store import Store

    if not folder.is_dir():
        raise click.UsageError(f"--store {folder}: no such folder; `vram-plan bench run` makes it")
    return Store(folder)
