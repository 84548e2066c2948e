"""The space that is searched: a value or several for every option."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.planner import refuse_idle
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search.ranges import ALL, numbers, words
from vram_plan.profiles.gpus import GpuSpec, find_gpu, load_gpus
from vram_plan.profiles.model import ModelSpec

Assignment = dict[str, Any]
"""A value for every option that has several, by command-line name with underscores."""

MACHINE = ("gpus", "gpu")
"""Options that are bought; all others are a recipe."""
MOST_RAW = 10**8
"""Raw configurations that nobody asks for by mistake."""

CHOICES: dict[str, tuple[str, ...]] = {
    "method": choices.METHODS,
    "adapter_dtype": choices.ADAPTER_DTYPES,
    "engine": choices.ENGINES,
    "zero": ("none", "0", "1", "2", "3"),
    "fsdp": ("none", *choices.FSDP_STRATEGIES),
    "pp_schedule": choices.PIPELINE_SCHEDULES,
    "offload": choices.OFFLOADS,
    "offload_device": choices.OFFLOAD_DEVICES,
    "precision": choices.PRECISIONS,
    "fp8_recipe": choices.FP8_RECIPES,
    "state_dtype": choices.STATE_DTYPES,
    "weights_dtype": choices.WEIGHTS_DTYPES,
    "quantization": choices.QUANTIZATIONS,
    "optimizer": choices.OPTIMIZERS,
    "checkpointing": choices.CHECKPOINTINGS,
    "attention": choices.ATTENTIONS,
    "loss": choices.LOSSES,
    "kv_dtype": choices.KV_DTYPES,
}
"""Options with words that take a list or ``any``."""
NUMBERS: dict[str, tuple[int, ...]] = {
    "gpus": (*range(1, 9), *range(16, 65, 8)),
    "gpus_per_node": (),
    "tp": (1, 2, 4, 8),
    "pp": (1, 2, 4, 8),
    "cp": (1, 2, 4, 8),
    "ep": (1, 2, 4, 8),
    "virtual_pipeline": (),
    "lora_rank": (),
    "adapter_size": (),
    "freeze_layers": (),
    "virtual_tokens": (),
    "seq_len": (),
    "source_len": (),
    "grad_accum": (),
}
"""Options with numbers that take a range, and what ``any`` and ``auto`` are for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched.

    Attributes:
        model: the architecture.
        fixed: options with one value.
        ranges: options with several, in the order in which configurations are counted.
        micro_batches: sequences per rank that may be used; None: any number that fits.
        typed: what was typed for the model and the options with one value, to be repeated.
    """

    model: ModelSpec
    fixed: Mapping[str, Any]
    ranges: Mapping[str, tuple[Any, ...]]
    micro_batches: tuple[int, ...] | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.ranges.items():
            if not values:
                raise ValueError(f"--{name.replace('_', '-')}: there is no value to try")
        if self.micro_batches is not None and not all(b >= 1 for b in self.micro_batches):
            raise ValueError("--micro-batch must be at least 1")

    @property
    def raw(self) -> int:
        """Configurations: the product of the choices, the micro-batch not counted."""
        return prod(len(values) for values in self.ranges.values())

    def values(self, name: str, default: Any = None) -> tuple[Any, ...]:
        """Every value an option takes in the space."""
        if name in self.ranges:
            return self.ranges[name]
        return (self.fixed.get(name, default),)

    @property
    def recipes(self) -> tuple[Assignment, ...]:
        """Every assignment of the options that are no machine, in order."""
        names = [name for name in self.ranges if name not in MACHINE]
        return tuple(
            dict(zip(names, values, strict=True))
            for values in product(*(self.ranges[name] for name in names))
        )

    @property
    def machines(self) -> Iterator[tuple[int, GpuSpec | None]]:
        """Every number of GPUs of every kind, in order."""
        return product(self.values("gpus", 1), self.values("gpu"))

    def config(self, options: Assignment) -> TrainConfig:
        """A configuration, resolved.

        Raises:
            ValueError: nothing runs it; one line that names the option and the way out.
        """
        config = resolve(self.model, {**self.fixed, **options})
        if config.training:
            refuse_idle(config)
        return config

    def at(self, order: int) -> Assignment:
        """The assignment at a place: recipes in order, each with every machine in order."""
        names = [*(name for name in self.ranges if name not in MACHINE), "gpus", "gpu"]
        found: Assignment = {}
        for name in reversed(names):
            values = self.values(name, 1 if name == "gpus" else None)
            order, index = divmod(order, len(values))
            found[name] = values[index]
        return found

    def place(self, assignment: Assignment) -> int:
        """The place of an assignment: the inverse of `at`."""
        names = [*(name for name in self.ranges if name not in MACHINE), "gpus", "gpu"]
        order = 0
        for name in names:
            values = self.values(name, 1 if name == "gpus" else None)
            order = order * len(values) + values.index(assignment[name])
        return order


def parse_space(model: ModelSpec, typed: Mapping[str, Any]) -> Space:
    """A space from what was typed: text for options that take ranges, values for all others.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    fixed: dict[str, Any] = {}
    ranges: dict[str, tuple[Any, ...]] = {}
    micro_batches: tuple[int, ...] | None = None
    for name, value in typed.items():
        if name == "micro_batch":
            micro_batches = None if value in ALL else numbers(name, value)
            continue
        values = _values(name, value)
        if len(values) == 1:
            fixed[name] = values[0]
        else:
            ranges[name] = values
    return Space(model=model, fixed=fixed, ranges=ranges, micro_batches=micro_batches)


def _values(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, str):
        return (value,)
    if name == "gpu":
        return _gpus(value)
    if name in CHOICES:
        found = words(name, value, CHOICES[name])
        return tuple(_plain(name, word) for word in found)
    if name in NUMBERS:
        return numbers(name, value, NUMBERS[name])
    return (value,)


def _plain(name: str, word: str) -> Any:
    if name in {"zero", "fsdp"} and word == "none":
        return None
    return int(word) if name == "zero" else word


def _gpus(text: str) -> tuple[GpuSpec, ...]:
    if text in ALL:
        return tuple(load_gpus().values())
    found = (find_gpu(part.strip()) for part in text.split(","))
    return tuple({gpu.name: gpu for gpu in found}.values())
