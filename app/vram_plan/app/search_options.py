"""The options of a search: those of a plan, ranges where a plan takes a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from vram_plan.app.options import _OPTIONS, given, model_option
from vram_plan.estimator.refusals import option
from vram_plan.estimator.search.space import CHOICES, NUMBERS, Space, parse_space
from vram_plan.estimator.search.wish import Candidate
from vram_plan.profiles.model import ModelSpec

Function = TypeVar("Function", bound=Callable[..., Any])

RANGED = frozenset({*CHOICES, *NUMBERS, "gpu", "micro_batch"})
"""Options that take ranges."""
_ENGINES = ("engine", "zero", "fsdp", "ds_config")
_UNITS = {"m": 60, "h": 3600, "d": 86400, "": 3600}
_METAVARS = {"gpu": "NAMES|any", "micro_batch": "RANGE|auto", "gpus": "RANGE"}


def ranges(function: Function) -> Function:
    """Add ``--model`` and every option of a configuration, as ranges where that makes sense."""
    for spelled, settings in reversed(_OPTIONS):
        name = _name(spelled)
        if name in RANGED:
            metavar = _METAVARS.get(name, "RANGE" if name in NUMBERS else "WORDS|any")
            words = re.sub(r"\s*\[default:.*\]", "", settings.get("help") or "")
            settings = {"metavar": metavar, "help": words}
        function = click.option(spelled, **settings)(function)
    return model_option(function)


def _name(spelled: str) -> str:
    return spelled.partition("/")[0].removeprefix("--").replace("-", "_")


def space_of(model: ModelSpec, values: Mapping[str, Any], word: str) -> Space:
    """The space that was typed; the stage and checkpointing are searched unless they are said.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    typed = {name: value for name, value in values.items() if value is not None}
    if typed.get("task") != "inference":
        if not any(name in typed for name in _ENGINES):
            typed["zero"] = "any"
        typed.setdefault("checkpointing", "any")
    single = given({name: value for name, value in typed.items() if name not in RANGED})
    several = {name: value for name, value in typed.items() if name in RANGED}
    return replace(parse_space(model, single | several), typed=typed | {"model": word})


def seconds(text: str | None) -> float | None:
    """``90m``, ``12h``, ``3d``, hours without a unit.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd]?)", text.strip().lower())
    if match is None:
        raise ValueError(f"--deadline {text}: write 90m, 12h or 3d")
    return float(match[1]) * _UNITS[match[2]]


def spelled(name: str, value: object) -> str:
    """An option as it is typed."""
    from vram_plan.profiles.gpus import GpuSpec

    if value is None:
        return f"{option(name)} none"
    if isinstance(value, float):
        return f"{option(name)} {value:.15g}"
    return f"{option(name)} {value.name if isinstance(value, GpuSpec) else value}"


def command_line(space: Space, plan: Candidate) -> str:
    """The plan as a command to type."""
    chosen = space.at(plan.order) | {"micro_batch": plan.config.micro_batch}
    if plan.config.grad_accum > 1:
        chosen["grad_accum"] = plan.config.grad_accum
    words = ["vram-plan"]
    for name, value in {"model": space.model.name, **space.typed, **chosen}.items():
        if isinstance(value, bool):
            words.append(option(name) if value else option(f"no_{name}"))
        elif value is not None and value != "none":
            words.append(spelled(name, value))
    return " ".join(words)
