"""The command line's entrance: commands, and errors in one line."""

from __future__ import annotations

import sys

import click
from click_default_group import DefaultGroup

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=DefaultGroup, default="plan", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(package_name="vram-plan", message="%(prog)s %(version)s")
def cli() -> None:
    """Say whether a fine-tune fits, before anyone rents a GPU.

    Without a command name, options go to `plan`:

    \b
      vram-plan --model 7b --zero 2 --gpus 8
      vram-plan --model Qwen/Qwen2.5-7B --method qlora --gpu rtx-4090
      vram-plan --model ./config.json --fsdp full-shard --gpus 16 --format json
      vram-plan models --family llama
      vram-plan gpus --at-least 48
    """


def _register() -> None:
    from vram_plan.app.catalogue_commands import gpus, models
    from vram_plan.app.plan_command import plan

    for command in (plan, models, gpus):
        cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a person got wrong is one line on stderr and exit code 2."""
    _register()
    try:
        code = cli.main(args=arguments, prog_name="vram-plan", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.NoSuchOption as error:
        _complain(f"no such option: {error.option_name}{_near(error.possibilities)}")
    except click.ClickException as error:
        _complain(error.format_message())
    except click.Abort:
        _complain("stopped", code=130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _near(possibilities: object) -> str:
    near = sorted(str(one) for one in possibilities) if isinstance(possibilities, list) else []
    return f"; did you mean {', '.join(near)}?" if near else " (see vram-plan plan --help)"


def _complain(message: str, *, code: int = 2) -> None:
    line = " ".join(message.split())
    click.echo(f"Error: {line}", err=True)
    sys.exit(code)
