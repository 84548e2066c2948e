"""``vram-plan dry-run``: the real libraries' training step, traced without hardware."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vram_plan.app.options import configuration, given

if TYPE_CHECKING:
    from vram_plan.bench.dry_run import DryRun, Say
    from vram_plan.bench.measurement import Measurement
    from vram_plan.estimator.planner import Plan

_VIEW = ("device", "whole", "timeline", "snapshot", "format_", "explain")
"""Options that do not belong to the configuration."""


@click.command(name="dry-run")
@configuration
@click.option(
    "--device",
    type=click.Choice(("fake", "cpu", "cuda")),
    default="fake",
    help="fake: nothing is allocated; cpu: real tensors; cuda: this GPU.  [default: fake]",
)
@click.option("--whole", is_flag=True, help="Trace every layer; a few are extended otherwise.")
@click.option("--timeline", is_flag=True, help="Draw live memory over the step (all layers).")
@click.option(
    "--snapshot",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="Write a snapshot for pytorch.org/memory_viz (all layers).",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(("table", "json")),
    default="table",
    help="How to print.  [default: table]",
)
@click.option("--explain", is_flag=True, help="Print what is alive at the peak (all layers).")
@click.pass_context
def dry_run(context: click.Context, /, model: str, **values: Any) -> None:
    """Trace the real training step on fake tensors, and compare it with the plan.

    transformers' model, PEFT's adapters, bitsandbytes' layers and torch's optimizer run; nothing
    is allocated, every allocation is recorded. Needs `pip install 'vram-plan[bench]'`.

    \b
    Examples:
      vram-plan dry-run --model mistral-7b --method lora --seq-len 4096
      vram-plan dry-run --model 7b --zero 2 --gpus 8
      vram-plan dry-run --model gpt2 --checkpointing full --timeline
      vram-plan dry-run --model qwen2.5-0.5b --snapshot step.pickle
    """
    from vram_plan.bench.measurement import beside

    view = {name: values.pop(name) for name in _VIEW}
    try:
        seen, planned, job = _traced(model, values, view)
        if view["snapshot"] is not None:
            _write_snapshot(job, view["snapshot"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if view["format_"] == "json":
        seen = replace(seen, plan=beside(planned, seen.allocated_bytes))
        click.echo(json.dumps(seen.to_document(), indent=2, ensure_ascii=False))
    else:
        from vram_plan.app.dry_run_table import show

        trace = job.trace if view["explain"] else None
        show(seen, planned, trace=trace, timeline=view["timeline"])
    if seen.outcome != "ok":
        context.exit(1)


def _traced(
    model: str, values: dict[str, Any], view: dict[str, Any]
) -> tuple[Measurement, Plan, DryRun]:
    from vram_plan.bench.dry_run import DryRun, traced_model
    from vram_plan.estimator.planner import plan_config
    from vram_plan.estimator.resolve import resolve
    from vram_plan.profiles.models import resolve_model

    config = resolve(resolve_model(model), given(values))
    planned = plan_config(replace(config, model=traced_model(config.model)))
    whole = any(view[name] for name in ("whole", "timeline", "explain", "snapshot"))
    with _progress() as say:
        job = DryRun(config, device=view["device"], whole=whole, say=say)
        return job.run(), planned, job


def _write_snapshot(job: DryRun, path: str) -> None:
    if job.trace is None:
        raise ValueError("--snapshot: this configuration has no trace of single tensors")
    from vram_plan.bench.snapshot import write_snapshot

    write_snapshot(Path(path), job.trace)


@contextmanager
def _progress() -> Iterator[Say | None]:
    """A line on stderr at a terminal; nothing where the output is piped."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("planning") as status:
        yield lambda text: status.update(text)
