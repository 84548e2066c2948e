"""``--from``, ``--export`` and ``--force`` of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig

Function = TypeVar("Function", bound=Callable[..., Any])


def exchange_options(function: Function) -> Function:
    """Add the options to a command that has those of a configuration; a file may name the model."""
    for param in getattr(function, "__click_params__", ()):
        if param.name == "model":
            param.required = False
    function = export_options(function)
    return click.option(
        "--from",
        "from_files",
        multiple=True,
        metavar="FILE",
        help="Plan what a file says: DeepSpeed JSON, Accelerate YAML, TrainingArguments, PEFT, "
        "axolotl, LLaMA-Factory or torchtune, known by its content. Repeatable; options win.",
    )(function)


def export_options(function: Function) -> Function:
    """Add ``--export`` and ``--force`` to a command."""
    function = click.option("--force", is_flag=True, help="Let --export replace files.")(function)
    return click.option(
        "--export",
        "export",
        metavar="DIR",
        help="Write what a run needs: DeepSpeed, Accelerate, TrainingArguments, PEFT, train.py, "
        "launch.sh, axolotl, LLaMA-Factory.",
    )(function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What was asked of files.

    Attributes:
        read: paths to read.
        export: the folder to write, or None.
        force: whether it may hold files.
    """

    read: tuple[str, ...]
    export: str | None
    force: bool

    def configuration(self, model: str | None, options: Mapping[str, Any]) -> TrainConfig:
        """The configuration of the files under the options; warnings go to stderr.

        Raises:
            ValueError: one line that names the option or the file and the way out.
        """
        if self.read:
            from vram_plan.app.exchange.merge import read_files

            found = read_files(self.read, model, options)
            for text in found.warnings:
                click.echo(f"Warning: {text}", err=True)
            for text in found.notes:
                click.echo(f"Note: {text}", err=True)
            return found.config
        if model is None:
            raise ValueError("Missing option '--model' (or --from FILE that names one).")
        from vram_plan.estimator.resolve import resolve
        from vram_plan.profiles.models import resolve_model

        return resolve(resolve_model(model), options)

    def write(self, config: TrainConfig) -> None:
        """Write the files if they were asked for, and say on stderr what they cannot say.

        Raises:
            ValueError: for a folder in use, or a configuration that no format can say.
        """
        if self.export is None:
            return
        from vram_plan.app.exchange.export import export_plan

        found = export_plan(config, self.export, force=self.force)
        click.echo(f"wrote {', '.join(found.files)} to {self.export}", err=True)
        for text in found.notes:
            click.echo(f"Note: {text}", err=True)


def take_exchange(values: dict[str, Any]) -> Exchange:
    """The options of files, taken out of the command's values.

    Raises:
        ValueError: for a folder in use, before anything is computed.
    """
    found = Exchange(
        read=tuple(values.pop("from_files", ())),
        export=values.pop("export", None),
        force=values.pop("force", False),
    )
    if found.export is not None:
        from vram_plan.app.exchange.export import check_folder

        check_folder(found.export, force=found.force)
    elif found.force:
        raise ValueError("--force needs --export DIR")
    return found
