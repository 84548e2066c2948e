"""``vram-plan plan``: predict, print, judge."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from vram_plan.app.options import configuration, given

_FORMATS = {"table": "table", "json": "json_format", "markdown": "markdown", "csv": "csv_format"}


@click.command()
@configuration
@click.option(
    "--format",
    "format_",
    type=click.Choice(tuple(_FORMATS)),
    default="table",
    help="How to print.  [default: table]",
)
@click.option("--explain", is_flag=True, help="Print the ledger: every byte with its formula.")
@click.option("--check", is_flag=True, help="Exit with 1 unless it fits (needs --gpu).")
@click.pass_context
def plan(
    context: click.Context,
    /,
    model: str,
    format_: str,
    explain: bool,
    check: bool,
    **values: Any,
) -> None:
    """Predict the memory of a fine-tune per GPU, and where it fits.

    \b
    Examples:
      vram-plan --model 7b --zero 2 --gpus 8
      vram-plan --model llama-3-8b --method lora --checkpointing full --gpu a100-40gb
      vram-plan --model 70b --fsdp full-shard --gpus 64 --seq-len 8192 --explain
      vram-plan --model 13b --task inference --quantization nf4 --micro-batch 8
    """
    from vram_plan.estimator.planner import plan as predict

    try:
        if check and values.get("gpu") is None:
            raise ValueError("--check needs --gpu: name the GPU that it has to fit")
        result = predict(model, **given(values))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    renderer = import_module(f"vram_plan.app.{_FORMATS[format_]}")
    renderer.show(result, explain=explain)
    if check and not result.fits[0].fits:
        context.exit(1)
