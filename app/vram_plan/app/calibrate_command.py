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
def calibrate(device: str | None, output: str | None) -> None:
    """Measure this machine in about a minute: products, attention, memory, a few real steps.

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

        machine = measure(device or default_device(), _say)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    path = output or this_file()
    write_machine(machine, path)
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in machine.gpu.peak_flops.items())
    click.echo(f"peak TFLOP/s: {rates}")
    click.echo(f"memory: {machine.gpu.memory_bandwidth_bytes_per_s / 1e9:.3g} GB/s")
    click.echo(f"written to {path}")


def _say(text: str) -> None:
    click.echo(f"measuring {text}", err=True)
