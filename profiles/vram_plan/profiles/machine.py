"""A machine that was measured: ``vram-plan bench calibrate`` writes the file, plans read it.

``--gpu this`` reads the file that was written last on this computer, ``--calibration FILE`` any
other. The card that is planned for names the file as its source, and its efficiency curves are
those in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from vram_plan.profiles.collective_rates import MeasuredLinks, links_from, links_table
from vram_plan.profiles.efficiency import CALIBRATED, Curves, curves_in
from vram_plan.profiles.gpus import GpuSpec

__all__ = ["THIS", "Machine", "read_machine", "this_file", "write_machine"]

THIS = "this"
_FIRST = "# This machine as `vram-plan bench calibrate` measured it: seconds, shares of the peak.\n"
_LEFT_OUT = frozenset({"source", "rental_usd_per_hour", "purchase_usd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is planned for, what it reaches, and how fast its GPUs exchange where it has several."""

    gpu: GpuSpec
    curves: Curves
    links: MeasuredLinks | None = None


def this_file() -> str:
    """Where the profile of this computer lies."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "vram-plan", "this.toml")


def write_machine(machine: Machine, path: str) -> None:
    """Write a profile, and the folder it lies in."""
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    lines = [_FIRST, "[gpu]"]
    lines += [
        f"{field.name} = {_toml(value)}"
        for field in fields(GpuSpec)
        if field.name not in _LEFT_OUT and (value := getattr(machine.gpu, field.name)) is not None
    ]
    lines += ["", f"[family.{THIS}]"]
    lines += [
        f"{field.name} = {_toml(value)}"
        for field in fields(Curves)
        if field.name != "name" and (value := getattr(machine.curves, field.name)) not in ((), "")
    ]
    lines += links_table(machine.links) if machine.links else []
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if hasattr(value, "items"):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return repr(value)


def read_machine(path: str | None = None) -> Machine:
    """The profile in a file, or this computer's.

    Raises:
        ValueError: when there is none, or it is malformed.
    """
    import tomllib

    found = path or this_file()
    try:
        with open(found, "rb") as file:
            document: dict[str, Any] = tomllib.load(file)
        values = {"tdp_watts": None, **document["gpu"]}
        gpu = GpuSpec(**values, source=CALIBRATED + os.path.abspath(found))
        return Machine(gpu=gpu, curves=curves_in(found)[0], links=links_from(document))
    except FileNotFoundError:
        raise ValueError(_missing(path, found)) from None
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"--calibration {found}: no profile of a machine ({error})") from None


def _missing(path: str | None, found: str) -> str:
    if path is None:
        return f"--gpu this: no {found}; run vram-plan bench calibrate first"
    return f"--calibration {path}: no such file; write it with vram-plan bench calibrate"
