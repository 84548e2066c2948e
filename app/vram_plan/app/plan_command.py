"""``vram-plan plan``: predict, print, judge."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import click

from vram_plan.app.cost_options import take_workload, with_disks, workload_options
from vram_plan.app.exchange.options import exchange_options, take_exchange
from vram_plan.app.largest import take_largest
from vram_plan.app.options import configuration, given

_FORMATS = {"table": "table", "json": "json_format", "markdown": "markdown", "csv": "csv_format"}


@click.command()
@exchange_options
@configuration
@workload_options
@click.option(
    "--format",
    "format_",
    type=click.Choice(tuple(_FORMATS)),
    default="table",
    help="How to print.  [default: table]",
)
@click.option("--explain", is_flag=True, help="Print the ledger: every byte with its formula.")
@click.option("--check", is_flag=True, help="Exit with 1 unless it fits (needs --gpu).")
@click.option("--max-batch", is_flag=True, help="Plan the largest micro-batch that fits --gpu.")
@click.option("--max-seq-len", is_flag=True, help="Plan the longest sequence that fits --gpu.")
@click.pass_context
def plan(
    context: click.Context,
    /,
    model: str | None,
    format_: str,
    explain: bool,
    check: bool,
    nvme_gb_s: str | None,
    **values: Any,
) -> None:
    """Predict the memory of a fine-tune per GPU, where it fits, and with --gpu speed and cost.

    \b
    Examples:
      vram-plan --model 7b --zero 2 --gpus 8
      vram-plan --model llama-3-8b --method lora --checkpointing full --gpu a100-40gb
      vram-plan --model 70b --fsdp full-shard --gpus 64 --seq-len 8192 --explain
      vram-plan --model 13b --task inference --quantization nf4 --micro-batch 8
      vram-plan --model 7b --zero 2 --gpus 8 --gpu a100-80gb-sxm --tokens 1B
      vram-plan --model llama-3-8b --method qlora --gpu rtx-4090 --max-seq-len
      vram-plan --from training_args.yaml --from ds_config.json --model 7b --gpus 8
      vram-plan --model llama-3-8b --method qlora --export run
    """
    from vram_plan.estimator.planner import plan_config

    try:
        if check and values.get("gpu") is None:
            raise ValueError("--check needs --gpu: name the GPU that it has to fit")
        workload, exchange = take_workload(values), take_exchange(values)
        enlarge = take_largest(values)
        config = with_disks(exchange.configuration(model, given(values)), nvme_gb_s)
        result = plan_config(enlarge(config))
        exchange.write(result.config)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if workload is not None:
        result = replace(result, workload=workload)
    renderer = import_module(f"vram_plan.app.{_FORMATS[format_]}")
    renderer.show(result, explain=explain)
    if check and not result.fits[0].fits:
        context.exit(1)
