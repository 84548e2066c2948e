"""``vram-plan report``: stored runs, plans and dry runs on one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click_default_group import DefaultGroup

if TYPE_CHECKING:
    from vram_plan.reports.page.sections import Section

__all__ = ["report"]

Command = TypeVar("Command", bound=Callable[..., Any])

_SCHEMAS = ("vram-plan/measurement/1", "vram-plan/plan/1")
_MOST_BYTES = 64 * 2**20


@click.group(cls=DefaultGroup, default="page", default_if_no_args=False)
def report() -> None:
    """Write stored runs, plans and dry runs as one self-contained page.

    \b
    Examples:
      vram-plan report --store vram-plan-runs
      vram-plan report --store vram-plan-runs --output report.md
      vram-plan report compare --axis gpu a100.json h100.json
    """


def _given(function: Command) -> Command:
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    output = click.Path(dir_okay=False, path_type=Path)
    for option in (
        click.option("--title", default="vram-plan report", show_default=True),
        click.option(
            "--output",
            type=output,
            default=Path("vram-plan-report.html"),
            show_default=True,
            help="A page (.html) or Markdown (.md).",
        ),
        click.option("--last", type=click.IntRange(1), default=500, show_default=True),
        click.option("--store", "folder", type=folder, help="Folder of stored runs."),
        click.argument("files", nargs=-1, type=path),
    ):
        function = option(function)
    return function


@click.command()
@_given
def page(files: tuple[Path, ...], folder: Path | None, last: int, output: Path, title: str) -> None:
    """All sections: memory, its components, time, cost, errors, how to make it again.

    FILES are what `plan`, `dry-run` and `bench show` print with `--format json`. The page fetches
    nothing and opens anywhere. Needs `pip install 'vram-plan[reports]'`.
    """
    documents = _documents(files, folder, last)
    from vram_plan.reports.page.sections import sections

    _write(output, title, documents, sections(documents))


@click.command()
@click.option("--axis", required=True, help="An option, model, gpu, or the name of a library.")
@_given
def compare(
    files: tuple[Path, ...], folder: Path | None, last: int, output: Path, **named: str
) -> None:
    """Set documents side by side that differ in one thing alone; ties are called ties.

    \b
    Examples:
      vram-plan report compare --axis method --store vram-plan-runs
      vram-plan report compare --axis transformers --store vram-plan-runs
    """
    documents = _documents(files, folder, last)
    from vram_plan.reports.page.comparison import comparison_sections

    try:
        sections = comparison_sections(documents, named["axis"].replace("-", "_"))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _write(output, named["title"], documents, sections)


for _command in (page, compare):
    report.add_command(_command)


def _documents(files: tuple[Path, ...], folder: Path | None, last: int) -> list[dict[str, Any]]:
    _require_libraries()
    documents = [_read(path) for path in files]
    if folder is not None:
        documents += _stored(folder, last)
    if not documents:
        raise click.UsageError("nothing to report: give --store DIR or files")
    return documents


def _write(
    output: Path, title: str, documents: list[dict[str, Any]], sections: list[Section]
) -> None:
    from vram_plan.reports.page.html import page
    from vram_plan.reports.page.markdown import markdown
    from vram_plan.reports.page.sections import sentence

    write, answer = markdown if output.suffix == ".md" else page, sentence(documents)
    try:
        output.write_text(write(title, answer, sections), encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"--output {output}: {error.strerror}") from None
    click.echo(f"{output}: {answer}")


def _stored(folder: Path, last: int) -> list[dict[str, Any]]:
    from vram_plan.bench.runs.store import Store

    store = Store(folder)
    names = [row["file"] for row in store.index()][-last:]
    for damaged in store.damaged():
        click.echo(f"left out: {damaged.file}: {damaged.reason}", err=True)
    return [store.read(name) for name in names]


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES // 2**20} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{path}: {' '.join(str(error).split())[:120]}") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema not in _SCHEMAS:
        raise click.UsageError(
            f"{path}: no plan, dry run or run that this version reads (schema {schema!r})"
        )
    return dict(found)


def _require_libraries() -> None:
    from vram_plan.bench.environment import missing_libraries

    missing = missing_libraries(("pandas", "plotly"))
    if missing:
        raise click.UsageError(
            f"report needs {' and '.join(missing)}: pip install 'vram-plan[reports]'"
        )
