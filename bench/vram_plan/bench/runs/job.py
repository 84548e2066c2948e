"""One run to make: the configuration, where, and for how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import Any

from vram_plan.bench.environment import version_of
from vram_plan.bench.translate import model_fields
from vram_plan.estimator.ds_config import read_ds_config
from vram_plan.estimator.planner import Plan, plan
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.hf_config import from_hf_config
from vram_plan.profiles.machine import THIS
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import resolve_model
from vram_plan.profiles.nodes import find_node

__all__ = ["DEVICES", "LOOPS", "PADDINGS", "WEIGHTS", "Job"]

DEVICES = ("cpu", "cuda")
LOOPS = ("plain", "trainer")
PADDINGS = ("packing", "padding")
WEIGHTS = ("random", "checkpoint")
_CHOICES = {"device": DEVICES, "loop": LOOPS, "padding": PADDINGS, "weights": WEIGHTS}
_VIRTUAL = "virtual:"
_LATE = frozenset({"ranks", "loop", "data", "padding", "tokenizer", "weights"})
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
        ranks: ``real``: a process for each GPU; ``virtual:8``: rank 0 of 8 on one device.
        loop: ``plain`` is the step that the plan describes, ``trainer`` Hugging Face's Trainer.
        data: ``synthetic`` tokens, or a JSONL file of questions and answers or of chats.
        padding: what fills the sequences of a file: ``packing`` or ``padding``.
        tokenizer: a local folder of one; without it, bytes are tokens.
        weights: ``random``, or those of the ``checkpoint`` that the model names.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    layers: int = 0
    steps: int = 5
    warmup_steps: int = 2
    repeat: int = 0
    seed: int = 17
    ranks: str = "real"
    loop: str = "plain"
    data: str = "synthetic"
    padding: str = "packing"
    tokenizer: str | None = None
    weights: str = "random"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(allowed)
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of: {shown}")
        self._check_ranks()
        for name, least in (("layers", 0), ("steps", 1), ("warmup_steps", 1), ("repeat", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}: {value!r}")

    def _check_ranks(self) -> None:
        """Virtual ranks are a number, and the plan's own where it is given too."""
        if self.ranks == "real":
            return
        count = self.ranks.removeprefix(_VIRTUAL) if self.ranks.startswith(_VIRTUAL) else ""
        if not count.isdecimal() or int(count) < 2:
            raise ValueError(f"ranks {self.ranks!r}: write real, or virtual:8 for rank 0 of 8")
        if self.options.get("gpus", int(count)) != int(count):
            raise ValueError(
                f"ranks {self.ranks} with {self.options['gpus']} gpus: leave one of them out"
            )
        if self.loop == "trainer":
            raise ValueError(f"ranks {self.ranks} with loop trainer: it waits for the other ranks")

    @property
    def virtual(self) -> int | None:
        """Ranks of which one is run; None for real ones."""
        return None if self.ranks == "real" else int(self.ranks.removeprefix(_VIRTUAL))

    @property
    def key(self) -> str:
        """Name of the run: the same for the same configuration, device and repetition."""
        return self._digest()

    @property
    def series(self) -> str:
        """The same for repetitions of one configuration."""
        return self._digest(repeat=0)

    def _digest(self, **changes: Any) -> str:
        """Of what was asked for; later additions count where they are used."""
        said = self.said() | changes
        text = json.dumps(said, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def said(self) -> dict[str, Any]:
        """Every value, those of ``ranks`` and below where they are not the default.

        Files are called by their last part: the same suite on another machine is the same run.
        """
        found = asdict(self)
        for name in ("data", "tokenizer"):
            found[name] = PurePath(found[name]).name if found[name] else found[name]
        for one in fields(self):
            if one.name in _LATE and found[one.name] == one.default:
                del found[one.name]
        return found

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

    def predict(self, gpu: str | None = None) -> Plan:
        """The plan of the same configuration.

        Args:
            gpu: the one to judge where the options name none.

        Raises:
            ValueError: one line naming the option and the way out.
        """
        options = self._planned()
        if gpu is not None:
            options.setdefault("gpu", gpu)
        return plan(self.spec(), **_looked_up(options))

    def _planned(self) -> dict[str, Any]:
        """The options as they come out on this device.

        On the CPU PyTorch's AdamW updates tensor by tensor (torch/optim/optimizer.py
        ``_default_to_fused_or_foreach``), and no GPU's workspaces exist. The plan's default, flash
        attention, is a package that transformers refuses to do without; torch's own has its
        kernels too.
        """
        options = dict(self.options)
        if options.get("gpu") == THIS:  # its profile is asked for the step time alone
            del options["gpu"]
        if "attention" not in options and (self.device == "cpu" or not version_of("flash-attn")):
            options["attention"] = "sdpa"
        if self.virtual is not None:
            options["gpus"] = self.virtual
        if self.device == "cpu":
            options.pop("gpu", None)
            own = options.get("engine") == "deepspeed" or {"zero", "ds_config"} & options.keys()
            if not own and options.get("optimizer", "adamw") == "adamw":
                options["optimizer"] = "adamw-for-loop"
        return options

    def to_json(self) -> str:
        """For the worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def _looked_up(options: dict[str, Any]) -> dict[str, Any]:
    """Names and files as the values that the plan wants: a job itself is plain text."""
    readers: dict[str, Callable[[str], Any]] = {
        "gpu": find_gpu,
        "node": find_node,
        "ds_config": read_ds_config,
        "fused_kernels": lambda text: tuple(part.strip() for part in text.split(",")),
    }
    return {
        name: readers[name](value) if name in readers and isinstance(value, str) else value
        for name, value in options.items()
    }


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
