"""Seconds of one optimizer step: a roofline for every kernel, and what of the traffic is exposed.

``mfu`` counts the operations that the method needs (causal scores halved, no gradients of frozen
weights, nothing twice); ``hfu`` counts those executed. Both are shares of the dense peak of the
compute dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.sharding.megatron import dividing_ranks
from vram_plan.estimator.sharding.pipeline import stages
from vram_plan.estimator.speed.bubble import ratio
from vram_plan.estimator.speed.cores import of_a_rank
from vram_plan.estimator.speed.exposure import exposed
from vram_plan.estimator.speed.flash import for_kernels
from vram_plan.estimator.speed.fp8 import in_16_bits, in_fp8, recipe_of
from vram_plan.estimator.speed.optimizer_step import optimizer_seconds
from vram_plan.estimator.speed.phases import Passing, chain_work, passing
from vram_plan.estimator.speed.roofline import peak_flops
from vram_plan.estimator.speed.traffic import NotModelled, transfers
from vram_plan.profiles.efficiency import Curves, curves_of

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.speed.transfer import Transfer
    from vram_plan.estimator.speed.work import Work
    from vram_plan.profiles.gpus import GpuSpec

__all__ = ["StepTime", "StepWork", "step_time", "step_work", "time_of", "tokens_per_step"]

_MEGATRONS = frozenset({"megatron", "nanotron"})
OPTIMIZER, BUBBLE = "optimizer step", "pipeline bubble"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of the whole run.

    Attributes:
        parts: seconds by part; they sum to ``seconds``.
        tokens: tokens that all GPUs take in.
        gpus: GPUs of the run.
        needed_flops: operations per GPU that the method needs.
        executed_flops: operations per GPU that are executed.
        peak_flops: dense operations per second of one GPU in the compute dtype.
        curves: the family of efficiency curves used.
    """

    parts: dict[str, float]
    tokens: int
    gpus: int
    needed_flops: float
    executed_flops: float
    peak_flops: float
    curves: str

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of the whole run."""
        return self.tokens / self.seconds

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Tokens a second of one GPU."""
        return self.tokens_per_second / self.gpus

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization."""
        return self.needed_flops / self.seconds / self.peak_flops

    @property
    def hfu(self) -> float:
        """Hardware FLOPs utilization."""
        return self.executed_flops / self.seconds / self.peak_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one optimizer step computes and sends, whatever it runs on.

    Attributes:
        config: the configuration.
        stages: kernels of one micro-batch on each distinct pipeline stage.
        whole: kernels of one micro-batch through all stages.
        scale: nominal parameters of a size class over those of its representative shape.
        updated: trainable parameters that one rank's optimizer updates.
        tensors: that they are spread over.
        transfers: what travels.
    """

    config: TrainConfig
    stages: tuple[Work, ...]
    whole: Work
    scale: float
    updated: float
    tensors: float
    transfers: tuple[Transfer, ...]

    @property
    def gpu(self) -> GpuSpec:
        """What it is planned for."""
        assert self.config.gpu is not None
        return self.config.gpu


def step_time(config: TrainConfig, curves: Curves | None = None) -> StepTime | None:
    """The time of one step; None without a GPU, for inference, or where it is not modelled."""
    if config.gpu is None or not config.training:
        return None
    try:
        work = step_work(config)
    except NotModelled:
        return None
    return time_of(work, config.gpu, curves or curves_of(config.gpu))


def step_work(config: TrainConfig) -> StepWork:
    """Kernels and transfers of a configuration.

    Raises:
        NotModelled: when the catalogue lacks a rate that a transfer needs.
    """
    plain = in_16_bits(config)
    passes = run_passes(plain, keeps_gradients=config.grad_accum == 1)
    whole = chain_work(passes.links)
    parts: tuple[Work, ...] = (whole,)
    if config.pp > 1:
        parts = tuple(chain_work(rank.passes.links) for rank in stages(plain, passes))
    work = StepWork(
        config=config,
        stages=parts,
        whole=whole,
        scale=passes.inventory.scale,
        updated=passes.inventory.numel(trainable=True) / config.pp / sharing(config),
        tensors=passes.inventory.tensors(trainable=True) / config.pp,
        transfers=transfers(plain),
    )
    recipe = recipe_of(config)
    return in_fp8(work, recipe) if recipe else work


def time_of(work: StepWork, gpu: GpuSpec, curves: Curves) -> StepTime:
    """Seconds of a step's work on a GPU."""
    config, waves = work.config, work.config.grad_accum
    curves = for_kernels(curves, config, gpu)
    gpu = of_a_rank(gpu, config.gpus_per_node)
    found = [_passing(work, stage, gpu, curves) for stage in work.stages]
    one = max(found, key=lambda stage: stage.seconds)
    whole = one if config.pp == 1 else _passing(work, work.whole, gpu, curves)
    parts = {name: seconds * waves for name, seconds in one.parts.items()}
    parts[OPTIMIZER] = optimizer_seconds(config, work.updated, gpu, curves, tensors=work.tensors)
    phases = {
        "forward": one.forward * waves,
        "backward": one.backward * waves,
        "step": parts[OPTIMIZER],
    }
    parts |= exposed(work.transfers, phases, curves.contention)
    if config.pp > 1:
        parts[BUBBLE] = _bubble(config, whole.seconds, one.seconds)
    return StepTime(
        parts=parts,
        tokens=tokens_per_step(config),
        gpus=config.gpus,
        needed_flops=whole.needed_flops * waves / config.pp,
        executed_flops=whole.executed_flops * waves / config.pp,
        peak_flops=peak_flops(gpu, config.compute_bytes, config.precision),
        curves=curves.name,
    )


def _passing(work: StepWork, stage: Work, gpu: GpuSpec, curves: Curves) -> Passing:
    return passing(stage, gpu, curves, key_ranks=work.config.cp, scale=work.scale)


def _bubble(config: TrainConfig, whole: float, slowest: float) -> float:
    """Seconds that a stage waits for the pipeline to fill and drain; stages are unequal.

    ``whole`` and ``slowest``: seconds of a micro-batch through all stages, through that one.
    """
    if config.pp_schedule == "naive":
        return (whole - slowest) * config.grad_accum
    return ratio(config) * config.grad_accum * whole / config.pp


def sharing(config: TrainConfig) -> int:
    """Ranks that divide the optimizer's work among them."""
    if config.fsdp == "hybrid-shard":
        return min(config.gpus_per_node, config.shard_ranks)
    if config.engine in _MEGATRONS:  # as the memory of their optimizer says
        return dividing_ranks(config)
    return config.shard_ranks if (config.zero or 0) > 0 or config.fsdp else 1


def tokens_per_step(config: TrainConfig) -> int:
    """Tokens that all ranks take in for one optimizer step, those of the source included."""
    sequences = config.data_parallel * config.micro_batch * config.grad_accum
    return sequences * (config.seq_len + config.source_len)
