"""One run to make: the configuration, where, and for how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vram_plan.bench.translate import model_fields
from vram_plan.estimator.planner import Plan, plan
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import resolve_model

__all__ = ["DEVICES", "Job"]

DEVICES = ("cpu", "cuda")
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
"""What model types call their number of blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fine-tune.

    Attributes:
        model: a name, a size, a path or a hub id, as for the plan.
        options: the plan's options with underscores, those given alone.
        device: ``cpu`` or ``cuda``.
        layers: run the model at this depth; 0 is its own.
        steps: timed optimizer steps.
        warmup_steps: untimed ones before them.
        repeat: number of this repetition.
        seed: of weights and tokens.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    layers: int = 0
    steps: int = 5
    warmup_steps: int = 2
    repeat: int = 0
    seed: int = 17

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device {self.device!r} is not one of: {', '.join(DEVICES)}")
        for name, least in (("layers", 0), ("steps", 1), ("warmup_steps", 1), ("repeat", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}: {value!r}")

    @property
    def key(self) -> str:
        """Name of the run: the same for the same configuration, device and repetition."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def series(self) -> str:
        """The same for repetitions of one configuration."""
        text = json.dumps({**asdict(self), "repeat": 0}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def fields(self) -> dict[str, Any]:
        """The model's `config.json`, at the depth to run."""
        fields = model_fields(resolve_model(self.model))
        return at_depth(fields, self.layers) if self.layers else fields

    def spec(self) -> ModelSpec:
        """The architecture that is run."""
        whole = resolve_model(self.model)
        if not self.layers:
            return whole
        name = f"{whole.name} at {self.layers} layers"
        return from_hf_config(self.fields(), name=name, source=whole.source)

    def predict(self) -> Plan:
        """The plan of the same configuration.

        Raises:
            ValueError: one line naming the option and the way out.
        """
        return plan(self.spec(), **self.options)

    def to_json(self) -> str:
        """For the worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def at_depth(fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The same model with fewer blocks; lists with an item for each block are cut.

    Raises:
        ValueError: if the model has fewer blocks, or none are named.
    """
    found = [name for name in _DEPTHS if isinstance(fields.get(name), int)]
    if not found:
        raise ValueError("layers: this model's config.json names no number of layers")
    depth = fields[found[0]]
    if layers > depth:
        raise ValueError(f"layers {layers}: the model has {depth}")
    cut = {
        name: value[:layers] if isinstance(value, list) and len(value) == depth else value
        for name, value in fields.items()
    }
    return cut | dict.fromkeys(found, layers)
