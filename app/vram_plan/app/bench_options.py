"""How a real run is made: the options of ``bench run`` beside those of the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["OF_A_RUN", "run_options", "store_option"]

Function = TypeVar("Function", bound=Callable[..., Any])

OF_A_RUN = (
    *("device", "layers", "steps", "warmup_steps", "repeats"),
    *("ranks", "loop", "data", "padding", "tokenizer", "weights"),
)
"""Names of the values that the options below give."""

_OPTIONS = (
    click.option("--device", type=click.Choice(("cpu", "cuda")), help="[default: cuda if there]"),
    click.option("--layers", type=int, default=0, help="Run the model at this depth."),
    click.option("--steps", type=int, default=5, show_default=True, help="Timed optimizer steps."),
    click.option("--warmup-steps", type=int, default=2, show_default=True),
    click.option("--repeats", type=int, default=1, show_default=True, help="Runs of each cell."),
    click.option(
        "--ranks",
        default="real",
        show_default=True,
        metavar="real|virtual:N",
        help="A process for each GPU, or rank 0 of N on one device.",
    ),
    click.option(
        "--loop",
        type=click.Choice(("plain", "trainer")),
        default="plain",
        show_default=True,
        help="The plan's step, or Hugging Face's Trainer.",
    ),
    click.option(
        "--data",
        default="synthetic",
        show_default=True,
        metavar="synthetic|FILE.jsonl",
        help="Random tokens, or lines of question and answer, or of messages.",
    ),
    click.option(
        "--padding",
        type=click.Choice(("packing", "padding")),
        default="packing",
        show_default=True,
        help="How lines become sequences of one length.",
    ),
    click.option("--tokenizer", metavar="DIR", help="A transformers tokenizer.  [default: bytes]"),
    click.option(
        "--weights",
        type=click.Choice(("random", "checkpoint")),
        default="random",
        show_default=True,
        help="Random ones, or those of the folder that --model names.",
    ),
)

_STORE = click.option(
    "--store",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("vram-plan-runs"),
    show_default=True,
    help="Folder of stored runs.",
)


def store_option(function: Function) -> Function:
    """Add ``--store``, as ``folder``."""
    return _STORE(function)


def run_options(function: Function) -> Function:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
