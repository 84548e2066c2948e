"""What one virtual rank is asked to run, free of torch: it travels to the worker as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.translate import trace_config
from vram_plan.bench.virtual.ds_json import deepspeed_json
from vram_plan.estimator.config import TrainConfig

__all__ = ["ZeroCase", "zero_case"]

_REFUSED = {
    "one-bit-adam": "DeepSpeed 0.19.8 has it no longer",
    "muon": "DeepSpeed has one of its own, which is not traced",
}
_DEFAULT_PORT = 29511


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroCase:
    """One rank of a DeepSpeed job.

    Attributes:
        step: model, method, batch; its dtype is that of every weight, as DeepSpeed casts them.
        deepspeed: DeepSpeed's own JSON.
        ranks: of the whole job.
        rank: which one to be; None for the one whose partition is the largest.
        besides: ranks that other processes are, which None leaves to them.
        group: backend of the process group; ``fake`` moves nothing and waits for nobody.
        port: where the ranks of a real group meet.
    """

    step: TraceConfig
    deepspeed: Mapping[str, Any]
    ranks: int
    rank: int | None = 0
    besides: tuple[int, ...] = ()
    group: str = "fake"
    port: int = _DEFAULT_PORT

    def __post_init__(self) -> None:
        if self.ranks < 1 or not 0 <= (self.rank or 0) < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks} ranks: there is no such rank")
        if self.group not in {"fake", "gloo"}:
            raise ValueError(f"group {self.group!r} is not one of: fake, gloo")

    @property
    def zero(self) -> Mapping[str, Any]:
        """DeepSpeed's ``zero_optimization``."""
        section: Mapping[str, Any] = self.deepspeed["zero_optimization"]
        return section

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.zero["stage"])

    @property
    def offloads(self) -> tuple[bool, bool]:
        """Whether the optimizer and the weights are on the host."""
        return "offload_optimizer" in self.zero, "offload_param" in self.zero

    @property
    def pinned(self) -> bool:
        """Whether host buffers are page-locked."""
        return bool(self.zero.get("offload_optimizer", {}).get("pin_memory", False))

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps({**asdict(self), "step": asdict(self.step)})

    @classmethod
    def from_json(cls, text: str) -> ZeroCase:
        """The inverse of ``to_json``."""
        values = json.loads(text)
        known = {field.name for field in fields(TraceConfig)}
        given = {name: value for name, value in values["step"].items() if name in known}
        besides = tuple(values["besides"])
        return cls(**{**values, "besides": besides, "step": TraceConfig(**given)})


def zero_case(config: TrainConfig, raw: Mapping[str, Any] | None = None) -> ZeroCase:
    """The case of a resolved configuration with ``--zero``.

    Raises:
        ValueError: one line that says what DeepSpeed cannot be made to run here.
    """
    _refuse(config)
    single = replace(
        config,
        engine="torch",
        zero=None,
        gpus=1,
        gpus_per_node=1,
        offload="none",
        weights_dtype=config.precision,
        adapter_dtype=config.precision,
    )
    step = replace(trace_config(single, raw), autocast=None)
    return ZeroCase(step=step, deepspeed=deepspeed_json(config), ranks=config.shard_ranks)


def _refuse(config: TrainConfig) -> None:
    if config.zero is None:
        raise ValueError("virtual ranks run DeepSpeed alone: add --zero 0, 1, 2 or 3")
    if config.optimizer in _REFUSED:
        reason = _REFUSED[config.optimizer]
        raise ValueError(f"dry-run --zero --optimizer {config.optimizer}: {reason}; choose adamw")
    if config.offload != "none" and config.offload_device == "nvme":
        raise ValueError("dry-run --zero --offload-device nvme: not traced; choose cpu")
    for name, value in {"tp": config.tp, "pp": config.pp, "ep": config.ep, "cp": config.cp}.items():
        if value > 1:
            raise ValueError(f"dry-run --zero --{name} {value}: not traced; leave it out")
