"""How fast a configuration is, and how fast it could be at best without computing much.

The kernels of a pass take max(operations, bytes) each, so the seconds of a pass are convex in the
micro-batch b: the straight line through b = 1 and b = 2 lies nowhere above them further on. Two
tapes of a kind of work thus bound it for every b, on every number of GPUs and for every sharding of
states, which change what travels and not what is computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Protocol

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.rank import run_passes, treat
from vram_plan.estimator.speed.bubble import ratio
from vram_plan.estimator.speed.exposure import exposed
from vram_plan.estimator.speed.optimizer_step import optimizer_seconds
from vram_plan.estimator.speed.phases import chain_work, passing
from vram_plan.estimator.speed.roofline import peak_flops
from vram_plan.estimator.speed.step_time import sharing, step_time, tokens_per_step
from vram_plan.estimator.speed.traffic import NotModelled, transfers
from vram_plan.estimator.speed.work import Work
from vram_plan.profiles.efficiency import curves_of
from vram_plan.profiles.gpus import GpuSpec


class Speed(Protocol):
    """What a search asks about time; tests put a model of their own in its place."""

    def seconds_per_token(self, config: TrainConfig) -> float | None:
        """Seconds of the whole run for one token, all GPUs together; None: not modelled."""

    def work(self, config: TrainConfig) -> Hashable:
        """What decides `rough` and `least`: configurations with equal work have equal floors."""

    def rough(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """GPU-seconds a token takes at least: quick to say, far below."""

    def least(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """The same, nearer: whatever the micro-batch, the number of GPUs and what travels."""

    def at_least(self, config: TrainConfig, batch: tuple[int, int], work: Hashable) -> float | None:
        """Seconds per token at least with a micro-batch no larger than this; None: not modelled."""


@dataclass(frozen=True, slots=True)
class _Line:
    """Seconds of a pass by micro-batch: those of one sequence, and of each one more at least."""

    one: float
    more: float

    @property
    def floor(self) -> float:
        """At least, for each of any number of sequences."""
        return min(self.more, self.one)

    def at(self, micro_batch: int) -> float:
        """At least, with so many sequences."""
        return self.one + (micro_batch - 1) * self.more


class Modelled:
    """The step time of the plan, and floors of it."""

    def __init__(self) -> None:
        self._works: dict[Hashable, tuple[_Tape, _Tape]] = {}
        self._known: dict[tuple[Hashable, str], tuple[_Line, _Line]] = {}

    def seconds_per_token(self, config: TrainConfig) -> float | None:
        """From the step time."""
        step = step_time(config)
        return None if step is None else 1 / step.tokens_per_second

    def work(self, config: TrainConfig) -> Hashable:
        """How every module is treated, and the shape of one sequence on a rank."""
        return (
            treat(config),
            config.engine,
            config.seq_len,
            config.source_len,
            config.cp,
            config.pp,
            config.checkpointing,
            config.offload == "activations",
            config.grad_accum == 1,
        )

    def rough(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """Its operations at the peak."""
        flops = self._tapes(config, work)[0].flops
        seconds = sum(each / peak_flops(gpu, itemsize) for itemsize, each in flops)
        return seconds * _ranks_per_token(config)

    def least(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """What one more sequence takes at least."""
        forward, backward = self._lines(config, gpu, work)
        return (forward.floor + backward.floor) * _ranks_per_token(config)

    def at_least(self, config: TrainConfig, batch: tuple[int, int], work: Hashable) -> float | None:
        """The step time with the passes on their line."""
        config = replace(config, micro_batch=batch[0], grad_accum=batch[1])
        gpu, waves = config.gpu, config.grad_accum
        assert gpu is not None
        lines = self._lines(config, gpu, work)
        forward, backward = (line.at(config.micro_batch) / config.pp * waves for line in lines)
        tape, curves = self._tapes(config, work)[0], curves_of(gpu)
        learning, tensors = tape.learning / config.pp / sharing(config), tape.tensors / config.pp
        step = optimizer_seconds(config, learning, gpu, curves, tensors=tensors)
        phases = {"forward": forward, "backward": backward, "step": step}
        try:
            waited = exposed(transfers(config), phases, curves.contention)
        except NotModelled:
            return None
        idle = ratio(config) * (forward + backward) if config.pp > 1 else 0.0
        seconds = forward + backward + step + sum(waited.values()) + idle
        return seconds / tokens_per_step(config)

    def _tapes(self, config: TrainConfig, key: Hashable) -> tuple[_Tape, _Tape]:
        if key not in self._works:
            one, two = (_tape(replace(config, micro_batch=b)) for b in (1, 2))
            self._works[key] = (one, two)
        return self._works[key]

    def _lines(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> tuple[_Line, _Line]:
        key = (work, gpu.name)
        if key not in self._known:
            curves = curves_of(gpu)
            one, two = (
                passing(tape.kernels, gpu, curves, key_ranks=config.cp, scale=tape.scale)
                for tape in self._tapes(config, work)
            )
            self._known[key] = (
                _Line(one.forward, two.forward - one.forward),
                _Line(one.backward, two.backward - one.backward),
            )
        return self._known[key]


def parts_per_token(config: TrainConfig) -> dict[str, float]:
    """GPU-seconds that each part of the step takes for a token; empty where not modelled."""
    step = step_time(config)
    if step is None:
        return {}
    return {name: part * step.gpus / step.tokens for name, part in step.parts.items()}


@dataclass(frozen=True, slots=True)
class _Tape:
    """One micro-batch through all stages.

    Attributes:
        kernels: with how often each runs.
        flops: operations by bytes per element of their factors.
        scale: nominal parameters of a size class over those of its representative shape.
        learning: parameters that learn.
        tensors: that they are spread over.
    """

    kernels: Work
    flops: tuple[tuple[int, float], ...]
    scale: float
    learning: int
    tensors: int


def _tape(config: TrainConfig) -> _Tape:
    passes = run_passes(config, keeps_gradients=config.grad_accum == 1)
    inventory, kernels = passes.inventory, chain_work(passes.links)
    flops: dict[int, float] = {}
    for kernel, count in kernels:
        times = count * inventory.scale * (config.cp if kernel.kind == "attention" else 1)
        flops[kernel.itemsize] = flops.get(kernel.itemsize, 0.0) + kernel.flops * times
    return _Tape(
        kernels=kernels,
        flops=tuple((itemsize, each) for itemsize, each in flops.items() if each),
        scale=inventory.scale,
        learning=inventory.numel(trainable=True),
        tensors=inventory.tensors(trainable=True),
    )


def _ranks_per_token(config: TrainConfig) -> float:
    """GPUs that work on one sequence of a micro-batch, by its tokens; stages share the passes."""
    return config.tp * config.cp / (config.seq_len + config.source_len)
