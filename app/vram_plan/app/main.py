"""The command line's entrance: commands, and errors in one line."""

from __future__ import annotations

import sys
from importlib import import_module

import click
from click_default_group import DefaultGroup

_COMMANDS = {
    "plan": "plan_command",
    "dry-run": "dry_run_command",
    "bench": "bench_command",
    "search": "search_command",
    "report": "report_command",
    "doctor": "doctor_command",
    "validate": "validate_command",
    "models": "catalogue_commands",
    "gpus": "catalogue_commands",
}
"""Command → module that has it under its name."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Commands(DefaultGroup):  # type: ignore[misc]  # the package has no types
    """Commands by name; the module of one is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in alphabetical order."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; any other word is an option of the default one."""
        name = cmd_name if cmd_name in _COMMANDS else self.default_cmd_name
        if name not in self.commands:
            module = import_module(f"vram_plan.app.{_COMMANDS[name]}")
            self.add_command(getattr(module, name.replace("-", "_")))
        found: click.Command | None = super().get_command(ctx, cmd_name)
        return found


@click.group(cls=Commands, default="plan", default_if_no_args=False, context_settings=CONTEXT)
@click.version_option(package_name="vram-plan", message="%(prog)s %(version)s")
def cli() -> None:
    """Say whether a fine-tune fits, before anyone rents a GPU.

    Without a command name, options go to `plan`:

    \b
      vram-plan --model 7b --zero 2 --gpus 8
      vram-plan --model Qwen/Qwen2.5-7B --method qlora --gpu rtx-4090
      vram-plan --model ./config.json --fsdp full-shard --gpus 16 --format json
      vram-plan search --model 7b --gpus 1..8 --gpu a100-80gb-sxm
      vram-plan dry-run --model mistral-7b --method lora
      vram-plan models --family llama
      vram-plan gpus --at-least 48
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a person got wrong is one line on stderr and exit code 2."""
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
