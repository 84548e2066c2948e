"""How fast a configuration is, and how fast it could be at best without computing much.

The kernels of a pass take max(operations, bytes) each, so but for rounding the seconds of a pass
are convex in the micro-batch b: the line through b = 1 and b = 2 lies nowhere above them further
on. Two tapes of a kind of work thus bound it for every b, on every number of GPUs and for every
sharding of states, which change what travels and not what is computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.rank import Passes
from vram_plan.estimator.search.alike import passes_of, staying, undivided
from vram_plan.estimator.search.likeness import ledger_traits
from vram_plan.estimator.search.passes import Added, Prices, added_up
from vram_plan.estimator.search.sent import Alike, Sent, depends_on_batch
from vram_plan.estimator.search.variant import varied
from vram_plan.estimator.speed.bubble import ratio
from vram_plan.estimator.speed.exposure import exposed
from vram_plan.estimator.speed.flash import for_kernels
from vram_plan.estimator.speed.fp8 import least_share
from vram_plan.estimator.speed.offload import sends_activations
from vram_plan.estimator.speed.optimizer_step import optimizer_seconds
from vram_plan.estimator.speed.phases import chain_work
from vram_plan.estimator.speed.roofline import peak_flops
from vram_plan.estimator.speed.step_time import sharing, step_time
from vram_plan.estimator.speed.traffic import NotModelled
from vram_plan.estimator.speed.worked import noting
from vram_plan.profiles.efficiency import Curves, curves_of
from vram_plan.profiles.gpus import GpuSpec

_ROUNDING = 0.999
"""Tensors are rounded up to 512 bytes, two perhaps and many not: by so little a line may lie above
the seconds of a pass."""
_LAUNCHES = 0.99
"""Share of the kernels of one sequence that any number of them has: a few depend on sizes."""


class Kinds(NamedTuple):
    """What `Speed.work` and `Speed.traffic` say of a recipe."""

    work: Hashable
    traffic: Any


class Speed(Protocol):
    """What a search asks about time; tests put a model of their own in its place."""

    def seconds_per_token(self, config: TrainConfig) -> float | None:
        """Seconds of the whole run for one token, all GPUs together; None: not modelled."""

    def work(self, config: TrainConfig) -> Hashable:
        """What decides `rough` and `least`: configurations with equal work have equal floors."""

    def traffic(self, config: TrainConfig) -> Hashable:
        """What decides, beside the machine and the batch, what ranks exchange."""

    def rough(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """GPU-seconds a token takes at least: quick to say, far below."""

    def least(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """The same, nearer: whatever the micro-batch, the number of GPUs and what travels."""

    def at_least(
        self,
        config: TrainConfig,
        batch: tuple[int, int],
        kinds: Kinds,
        most: TrainConfig | None = None,
    ) -> float | None:
        """Seconds per token at least with a micro-batch no larger than this; None: not modelled.

        With ``most``, the same on the most machines, it holds (times the GPUs) for every number of
        machines from one to the other: each rank's share of states is no less than on ``most``.
        """


@dataclass(frozen=True, slots=True)
class _Line:
    """Seconds of a pass by micro-batch: those of one sequence, and of each one more at least.

    ``launches``: what the host takes at least, however little the device has to do.
    """

    one: float
    more: float
    launches: float

    @property
    def floor(self) -> float:
        """At least, for each of any number of sequences."""
        return min(self.more, self.one)

    def at(self, micro_batch: int) -> float:
        """At least, with so many sequences."""
        return max(self.one + (micro_batch - 1) * self.more, self.launches)


def _line(one: float, two: float, launched: float) -> _Line:
    return _Line(_ROUNDING * one, _ROUNDING * (two - one), _LAUNCHES * launched)


class Modelled:
    """The step time of the plan, and floors of it."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, tuple[int, Passes]] = {}
        self._works: dict[tuple[Hashable, int], _Tape] = {}
        self._waiting: dict[Hashable, tuple[int, int]] = {}
        self._known: dict[tuple[Hashable, str, bool], tuple[_Line, _Line]] = {}
        self._prices: dict[tuple[str, float], Prices] = {}
        self._known_curves: dict[str, Curves] = {}
        self._sent = Sent()
        self._numbers: dict[Hashable, int] = {}
        self._asked: tuple[TrainConfig | None, Alike] = (None, Alike(0, 0))

    def seconds_per_token(self, config: TrainConfig) -> float | None:
        """From the step time."""
        with noting():
            step = step_time(config)
        return None if step is None else 1 / step.tokens_per_second

    def work(self, config: TrainConfig) -> Hashable:
        """A number for each different pass of one sequence, however states are sharded."""
        away, last = config.offload == "activations", config.grad_accum == 1
        own = (self.traffic(config).tensors, away, last, ledger_traits(config))
        if own not in self._numbers:
            self._numbers[own] = self._kind(config)
        return self._numbers[own]

    def _kind(self, config: TrainConfig) -> int:
        with noting():
            passes = passes_of(staying(config), 1)
            key = (id(passes), config.cp, config.seq_len, config.source_len, config.fp8_recipe)
            if key not in self._kinds:
                number = len(self._kinds)
                self._kinds[key] = (number, passes)
                self._works[number, 1] = _tape(passes, config.cp)
        return self._kinds[key][0]

    def traffic(self, config: TrainConfig) -> Alike:
        """Numbers for each different traffic."""
        if self._asked[0] is not config:
            self._asked = (config, self._sent.alike(config))
        return self._asked[1]

    def rough(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """Its operations at the peak."""
        flops = self._tape(config, work, 1).flops
        seconds = sum(each / peak_flops(gpu, itemsize) for itemsize, each in flops)
        seconds *= least_share(config, gpu, self._curves(gpu))
        return seconds * _ranks_per_token(config)

    def least(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        """What one more sequence takes at least."""
        forward, backward = self._lines(config, gpu, work)
        return (forward.floor + backward.floor) * _ranks_per_token(config)

    def at_least(
        self,
        config: TrainConfig,
        batch: tuple[int, int],
        kinds: Kinds,
        most: TrainConfig | None = None,
    ) -> float | None:
        """The step time with the passes on their line."""
        micro_batch, waves = batch
        if waves != config.grad_accum or depends_on_batch(config):
            config = varied(config, micro_batch=micro_batch, grad_accum=waves)
        most, gpu, work = most or config, config.gpu, kinds.work
        assert gpu is not None
        lines = self._lines(config, gpu, work)
        forward, backward = (line.at(micro_batch) / config.pp * waves for line in lines)
        tape, curves = self._tape(config, work, 1), self._curves(gpu)
        learning, tensors = tape.learning / config.pp / sharing(most), tape.tensors / config.pp
        step = optimizer_seconds(config, learning, gpu, curves, tensors=tensors)
        phases = {"forward": forward, "backward": backward, "step": step}
        try:
            waiting = self._host_bytes(config, work)
            sent = self._sent.at_least(config, kinds.traffic, waiting, most)
        except NotModelled:
            return None
        waited = exposed(sent, phases, curves.contention)
        idle = ratio(config) * (forward + backward) if config.pp > 1 else 0.0
        seconds = forward + backward + step + sum(waited.values()) + idle
        sequences = config.data_parallel * micro_batch * waves
        return seconds / (sequences * (config.seq_len + config.source_len))

    def _curves(self, gpu: GpuSpec) -> Curves:
        if gpu.name not in self._known_curves:
            self._known_curves[gpu.name] = curves_of(gpu)
        return self._known_curves[gpu.name]

    def _host_bytes(self, config: TrainConfig, work: Hashable) -> float:
        """Of activations that wait in host memory, on the line through one sequence and two."""
        if not sends_activations(config):
            return 0.0
        key = (work, config.checkpointing)
        if key not in self._waiting:
            one, two = (passes_of(undivided(config), b).host for b in (1, 2))
            self._waiting[key] = (one, two - one)
        one, more = self._waiting[key]
        return one + (config.micro_batch - 1) * more

    def _tape(self, config: TrainConfig, work: Hashable, micro_batch: int) -> _Tape:
        key = (work, micro_batch)
        if key not in self._works:
            with noting():
                self._works[key] = _tape(passes_of(staying(config), micro_batch), config.cp)
        return self._works[key]

    def _priced(self, config: TrainConfig, gpu: GpuSpec) -> Prices:
        curves = for_kernels(self._curves(gpu), config, gpu)
        key = (gpu.name, curves.attention_forward)
        return self._prices.setdefault(key, Prices(gpu, curves))

    def _lines(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> tuple[_Line, _Line]:
        key = (work, gpu.name, config.engine == "megatron")  # whose kernels may be others
        if key not in self._known:
            prices = self._priced(config, gpu)
            share = least_share(config, gpu, prices.curves)
            one, two = (self._tape(config, work, b) for b in (1, 2))
            forward, backward = (
                _line(
                    share * prices.seconds(a),
                    share * prices.seconds(b),
                    a.launches * prices.curves.launch_seconds,
                )
                for a, b in zip(one.added, two.added, strict=True)
            )
            self._known[key] = (forward, backward)
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
        added: the forward pass and the backward pass, products without the padding of their tiles:
            with rows and columns filled up nothing is convex.
        flops: operations by bytes per element of their factors.
        learning: parameters that learn.
        tensors: that they are spread over.
    """

    added: tuple[Added, Added]
    flops: tuple[tuple[int, float], ...]
    learning: int
    tensors: int


def _tape(passes: Passes, key_ranks: int) -> _Tape:
    inventory, kernels = passes.inventory, chain_work(passes.links)
    flops: dict[int, float] = {}
    for kernel, count in kernels:
        times = count * inventory.scale * (key_ranks if kernel.kind == "attention" else 1)
        flops[kernel.itemsize] = flops.get(kernel.itemsize, 0.0) + kernel.flops * times
    forward, backward = (
        added_up(kernels, key_ranks=key_ranks, scale=inventory.scale, backward=going_back)
        for going_back in (False, True)
    )
    return _Tape(
        added=(forward, backward),
        flops=tuple((itemsize, each) for itemsize, each in flops.items() if each),
        learning=inventory.numel(trainable=True),
        tensors=inventory.tensors(trainable=True),
    )


def _ranks_per_token(config: TrainConfig) -> float:
    """GPUs that work on one sequence of a micro-batch, by its tokens; stages share the passes."""
    return config.tp * config.cp / (config.seq_len + config.source_len)
