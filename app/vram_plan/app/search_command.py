"""``vram-plan search``: ranges in, the best plans out."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import click

from vram_plan.app.cost_options import NAMES as COSTS
from vram_plan.app.cost_options import cost_options, take_workload
from vram_plan.app.exchange.options import export_options, take_exchange
from vram_plan.app.progress import Progress
from vram_plan.app.search_options import ranges, seconds, space_of
from vram_plan.estimator.refusals import option
from vram_plan.estimator.search.space import MOST_RAW, Space
from vram_plan.estimator.search.wish import OBJECTIVES, Wish

_FORMATS = {
    "table": "search_table",
    "json": "search_json",
    "markdown": "search_markdown",
    "csv": "search_csv",
}


@click.command()
@ranges
@click.option(
    "--objective",
    metavar="|".join(OBJECTIVES),
    help="What is best.  [default: throughput; memory without --gpu]",
)
@click.option("--global-batch", type=int, metavar="N", help="Sequences in one optimizer step.")
@click.option("--max-usd-per-hour", type=float, metavar="USD", help="Rent of all GPUs, at most.")
@click.option("--deadline", metavar="TIME", help="When all is to be trained: 90m, 12h, 3d.")
@cost_options
@click.option("--top", type=int, default=5, metavar="N", help="Plans to print.  [default: 5]")
@click.option(
    "--format",
    "format_",
    type=click.Choice(tuple(_FORMATS)),
    default="table",
    help="How to print.  [default: table]",
)
@export_options
@click.option("--yes", is_flag=True, help=f"Search more than {MOST_RAW:,} configurations.")
@click.pass_context
def search(context: click.Context, /, model: str, format_: str, yes: bool, **values: Any) -> None:
    """Find the best way to run a fine-tune: on what you have, or on what to rent.

    A RANGE is 8, a list 1,2,8, all of 1..64, a step 1..64:8, doubling 1..64:x2; WORDS are a list or
    any. `--micro-batch auto`, which is the default, is the largest that fits. `--zero` and
    `--checkpointing` are searched unless they are given. Plans on the same machine whose figure is
    at most 0.1 % behind the best one's are named in its line.

    \b
    Examples:
      vram-plan search --model 7b --gpus 8 --gpu a100-80gb-sxm
      vram-plan search --model 7b --gpus 1..64 --gpu any --zero any --tp auto --objective cost
      vram-plan search --model 70b --method lora,qlora --gpu any --gpus 1..8 --max-usd-per-hour 12
      vram-plan search --model llama-3-8b --gpus 8 --gpu h100 --global-batch 256 \\
          --tokens 1b --deadline 12h --objective cost
      vram-plan search --model 13b --gpus 1..8 --offload any --objective memory
    """
    from vram_plan.estimator.search.search import search as find
    from vram_plan.profiles.models import resolve_model

    try:
        exchange = take_exchange(values)
        costs = {name: values[name] for name in COSTS if values[name] is not None}
        wish = _wish(values)
        space = space_of(resolve_model(model), values, model)
        _refuse_lengths(space, wish)
        space = replace(space, typed={**space.typed, **costs})  # the command says them too
        _refuse_many(space.raw, yes)
        progress = Progress()
        found = find(space, wish, progress=progress)
        progress.clear()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    import_module(f"vram_plan.app.{_FORMATS[format_]}").show(space, wish, found)
    try:
        for plan in found.plans[:1]:
            exchange.write(plan.config)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not found.complete:
        context.exit(130)


def _wish(values: dict[str, Any]) -> Wish:
    """Takes what is wanted out of the options."""
    from vram_plan.estimator.speed.cost import Workload

    objective = values.pop("objective") or ("throughput" if values.get("gpu") else "memory")
    wish = Wish(
        objective=objective,
        top=values.pop("top"),
        global_batch=values.pop("global_batch"),
        max_usd_per_hour=values.pop("max_usd_per_hour"),
        workload=take_workload(values) or Workload(),
        deadline_seconds=seconds(values.pop("deadline")),
    )
    if wish.global_batch is not None and values.get("grad_accum") is not None:
        raise ValueError("--grad-accum with --global-batch: it follows from it; drop one")
    if values.get("gpu") is None and (wish.needs_speed or wish.max_usd_per_hour is not None):
        raise ValueError(
            f"--objective {wish.objective} needs --gpu: speed and price are a GPU's; name one, "
            "several or any"
        )
    return wish


def _refuse_lengths(space: Space, wish: Wish) -> None:
    """Samples of different lengths are different amounts of work: nothing to compare by."""
    several = [name for name in ("seq_len", "source_len") if len(space.values(name)) > 1]
    if several and wish.workload.samples is not None:
        raise ValueError(
            f"--samples with several values of {option(several[0])}: a sample would be of any of "
            "these lengths; give --tokens, or one length"
        )


def _refuse_many(raw: int, yes: bool) -> None:
    if raw > MOST_RAW and not yes:
        raise ValueError(
            f"{raw:,} configurations are more than {MOST_RAW:,}: narrow a range, or give --yes"
        )
