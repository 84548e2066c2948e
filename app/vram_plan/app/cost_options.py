"""The options that say how much is trained, at which prices, and how fast disks are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig

Function = TypeVar("Function", bound=Callable[..., Any])
_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_PRICE = {"type": float, "metavar": "USD"}


def quantity(text: str) -> float:
    """A number that may end in k, M, B or T: ``10B``."""
    plain = str(text).strip().replace(",", "").replace("_", "")
    factor = _SIZES.get(plain[-1:].lower(), 1.0)
    try:
        return float(plain[:-1] if factor != 1.0 else plain) * factor
    except ValueError:
        raise click.BadParameter(f"{text} is no number; give 500000 or 10B") from None


_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--tokens",
        {"type": quantity, "metavar": "N", "help": "Tokens of the whole run (10B): its cost."},
    ),
    (
        "--samples",
        {"type": quantity, "metavar": "N", "help": "The same in sequences of --seq-len."},
    ),
    ("--epochs", {"type": float, "metavar": "E", "help": "Passes over them.  [default: 1]"}),
    ("--usd-per-gpu-hour", _PRICE | {"help": "Rent of one GPU.  [default: the catalogue's]"}),
    ("--usd-per-kwh", _PRICE | {"help": "Price of electricity, to compare with buying."}),
    (
        "--purchase-usd",
        _PRICE | {"help": "Price of one GPU with its share of a machine.  [default: at launch]"},
    ),
    (
        "--utilization",
        {"type": float, "metavar": "SHARE", "help": "Busy share of an owned GPU.  [default: 1]"},
    ),
    (
        "--pue",
        {
            "type": float,
            "metavar": "FACTOR",
            "help": "Power of the whole room per watt of the GPUs.  [default: 1]",
        },
    ),
)
NAMES = tuple(name.removeprefix("--").replace("-", "_") for name, _ in _OPTIONS)
_DISKS: tuple[str, dict[str, Any]] = (
    "--nvme-gb-s",
    {
        "metavar": "READ,WRITE",
        "help": "Rates of a machine's disks in 1e9 bytes a second (--offload-device nvme).",
    },
)


def workload_options(function: Function) -> Function:
    """Add the options to a command."""
    for name, settings in reversed((*_OPTIONS, _DISKS)):
        function = click.option(name, **settings)(function)
    return function


def cost_options(function: Function) -> Function:
    """Add those of the amount and the prices alone."""
    for name, settings in reversed(_OPTIONS):
        function = click.option(name, **settings)(function)
    return function


def take_workload(values: dict[str, Any]) -> Any:
    """Take the options out of ``values``; None if none was given.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    given = {name: values.pop(name) for name in NAMES if name in values}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return None
    option = "--" + next(iter(given)).replace("_", "-")
    if values.get("gpu") is None:
        raise ValueError(f"{option} needs --gpu: name the GPU whose time is paid for")
    if "epochs" in given and not {"tokens", "samples"} & set(given):
        raise ValueError("--epochs needs --samples or --tokens: how much is one epoch?")
    from vram_plan.estimator.speed.cost import Workload

    return Workload(**given)


def with_disks(config: TrainConfig, rates: str | None) -> TrainConfig:
    """The configuration on a machine whose disks are as fast as ``rates`` says.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    if rates is None:
        return config
    if config.node is None:
        raise ValueError("--nvme-gb-s needs --gpu: name the GPU of the machine")
    try:
        read, write = (float(part) * 1e9 for part in rates.split(","))
    except ValueError:
        raise ValueError(f"--nvme-gb-s {rates}: give READ,WRITE, for example 25,12") from None
    if not min(read, write) > 0:
        raise ValueError(f"--nvme-gb-s {rates}: both rates must be positive")
    node = replace(config.node, nvme_read_bytes_per_s=read, nvme_write_bytes_per_s=write)
    return replace(config, node=node)
