"""``vram-plan bench calibrate``: how fast this machine is, for ``--gpu this``."""

from __future__ import annotations

import click


@click.command()
@click.option("--device", type=click.Choice(("cpu", "cuda")), help="[default: cuda if there]")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where to write the profile.  [default: the one that --gpu this reads]",
)
@click.option(
    "--ranks",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes between which collectives are timed.  [default: one for each GPU]",
)
def calibrate(device: str | None, output: str | None, ranks: int | None) -> None:
    """Measure this machine in about a minute: products, attention, memory, links, real steps.

    Where there are several GPUs, what they exchange is timed too.

    \b
    Examples:
      vram-plan bench calibrate
      vram-plan --model qwen2.5-0.5b --gpu this
      vram-plan bench calibrate --output a100.toml
      vram-plan --model 7b --calibration a100.toml
    """
    from vram_plan.bench.runs.device import default_device, require_libraries
    from vram_plan.profiles.machine import this_file, write_machine

    try:
        require_libraries()
        from vram_plan.bench.calibrate.machine import calibrate as measure

        machine = measure(device or default_device(), _say, ranks)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    path = output or this_file()
    write_machine(machine, path)
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in machine.gpu.peak_flops.items())
    click.echo(f"peak TFLOP/s: {rates}")
    click.echo(f"memory: {machine.gpu.memory_bandwidth_bytes_per_s / 1e9:.3g} GB/s")
    for one in machine.links.rates if machine.links else ():
        shown = f"{one.bytes_per_s / 1e9:.3g} GB/s after {one.latency_seconds * 1e6:.3g} µs"
        click.echo(f"{one.kind} between {one.ranks}: {shown}")
    click.echo(f"written to {path}")


def _say(text: str) -> None:
    click.echo(f"measuring {text}", err=True)
