"""What PyTorch's allocator reserves: the plan's own timeline, replayed through its model.

Two steps are replayed from the loading of the weights on: optimizer states are born in the first
and lie between what the first step left free. Where lengths differ, more micro-batches are shown
(`lengths`). Nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

from vram_plan.estimator.allocator import AllocatorSettings, Change, OutOfMemory, Replay, replay
from vram_plan.estimator.allocator.plain import PlainAllocator
from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight, take_inventory
from vram_plan.estimator.lengths import parse_lengths, records
from vram_plan.estimator.optimizers import optimizer_states
from vram_plan.estimator.overhead import overhead_bytes, unlisted_workspaces, workspace_bytes
from vram_plan.estimator.quantization import packed_bytes
from vram_plan.estimator.rank import Passes as RankPasses
from vram_plan.estimator.rank import beside_named, run_passes
from vram_plan.estimator.reserved_fsdp import write_sharded
from vram_plan.estimator.reserved_fsdp2 import write_fully_sharded
from vram_plan.estimator.sharding.pipeline import stages
from vram_plan.estimator.storages import Served, ServedByPool, Storages, Timeline
from vram_plan.estimator.timeline import Passes, pieces_of
from vram_plan.estimator.varied import AtLength, Lengths

__all__ = ["peaks", "replay_run", "reserved_bytes", "run_changes", "run_timeline"]

STEPS = 2
SEEDS = (0, 1, 2)
"""Orders of sequences whose lengths differ."""
BUCKET_BYTES = 25 * 2**20
"""DDP's ``bucket_cap_mb`` (torch 2.13.0 ``torch/nn/parallel/distributed.py``)."""
NORM_BYTES = 4
QUANTIZED_ON_LOAD = frozenset({"nf4", "fp4", "int8"})
"""bitsandbytes quantizes on the device (0.50.2 ``nn/modules.py`` ``Params4bit._quantize``)."""


def reserved_bytes(config: TrainConfig, allocated: int) -> int:
    """The most that the allocator holds during the run.

    A GPU that cannot give all that is asked for gets cached segments back on the way. Where that
    does not help, it is all of the GPU if what is in use would fit, else what a larger one sees.

    Args:
        config: every option, resolved; ``overhead.is_modelled`` holds.
        allocated: the plan's peak; the replay's differs where a size class is scaled.
    """
    epoch = parse_lengths(config.lengths)
    found = [_reserved(config, allocated, seed) for seed in (SEEDS if epoch else SEEDS[:1])]
    return round(median(found))


def _reserved(config: TrainConfig, allocated: int, seed: int) -> int:
    """On the GPU that reserves most: where blocks are spread over several, each has a replay."""
    limit = None
    if config.gpu is not None:
        limit = config.gpu.usable_bytes - overhead_bytes(config) + unlisted_workspaces(config)
    found = [peaks(config, seed=seed, stage=stage, limit=limit) for stage in _stages(config)]
    reserved = max(reserved for reserved, _ in found)
    requested = max(requested for _, requested in found)
    if limit is not None and requested <= limit:
        reserved = min(reserved, limit)
    return reserved + max(allocated - requested + unlisted_workspaces(config), 0)


def peaks(config: TrainConfig, *, seed: int, stage: int, limit: int | None) -> tuple[int, int]:
    """Bytes reserved and requested at most.

    While nothing is given back, what is reserved only grows: below the limit at the end, the limit
    was never met, and the pools need not be asked in the order of the run.
    """
    kinds = ((ServedByPool, limit), (Served, limit), (ServedByPool, None))
    for kind, bound in kinds:
        allocator = PlainAllocator(bound, gives_back=kind is Served)
        served = kind(allocator)
        try:
            _write(config, served, seed, stage)
            served.close()
        except OutOfMemory:
            continue
        finally:
            allocator.close()
        break
    return allocator.reserved_peak_bytes, served.requested_peak


def _stages(config: TrainConfig) -> range:
    """The distinct GPUs of a run whose blocks are spread over several; else the one."""
    if config.pp == 1:
        return range(1)
    return range(len(stages(config, run_passes(config, keeps_gradients=True))))


def _on_stage(config: TrainConfig, keeps_gradients: bool, stage: int) -> RankPasses:
    passes = run_passes(config, keeps_gradients=keeps_gradients)
    return passes if config.pp == 1 else stages(config, passes)[stage].passes


def replay_run(
    config: TrainConfig,
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
) -> Replay:
    """Replay a run.

    Args:
        config: every option, resolved; ``overhead.is_modelled`` holds.
        settings: the allocator's; PyTorch's defaults when None.
        limit_bytes: what the device can hand out; None: all that is asked for.
    """
    timeline = run_timeline(config)
    return replay(timeline.changes, settings, limit_bytes, timeline.streams)


def run_changes(config: TrainConfig, seed: int = 0) -> list[Change]:
    """The changes of ``run_timeline``."""
    return run_timeline(config, seed).changes


def run_timeline(config: TrainConfig, seed: int = 0, stage: int = 0) -> Timeline:
    """Every change of the loading and of two steps, or of an epoch's longest micro-batches.

    Args:
        config: every option, resolved; ``overhead.is_modelled`` holds.
        seed: of the order of sequences whose lengths differ.
        stage: the GPU among those that the blocks are spread over.
    """
    timeline = Timeline()
    _write(config, timeline, seed, stage)
    return timeline


def _write(config: TrainConfig, timeline: Storages, seed: int, stage: int) -> None:
    if config.engine == "fsdp1":
        write_sharded(config, timeline)
    elif config.engine == "fsdp2":
        write_fully_sharded(config, timeline)
    else:
        _Run(config, timeline, seed, stage).write()


class _Run:
    """Writes the timeline of one configuration."""

    def __init__(self, config: TrainConfig, timeline: Storages, seed: int, stage: int) -> None:
        self.config = config
        self.seed = seed
        self.stage = stage
        self.timeline = timeline
        self.passes = Passes(self.timeline)
        self.first = _on_stage(config, True, stage)
        self.trainable: list[Weight] = []
        self.workspaces = 0

    def write(self) -> None:
        """Load, then step twice."""
        self._load()
        if self.config.engine == "ddp":
            self._buckets()
        for step, micro_batches in enumerate(self._steps()):
            for one in micro_batches:
                self._micro_batch(one)
            self._update(first=step == 0)

    def _steps(self) -> Iterator[list[AtLength]]:
        """The micro-batches of each optimizer step: two of a step stand for all, if all are alike.

        The first makes the gradients, the later ones add to them.
        """
        config, epoch = self.config, parse_lengths(self.config.lengths)
        accumulates = config.grad_accum > 1
        if epoch is None:
            later = _on_stage(config, False, self.stage) if accumulates else None
            whole = [_whole(passes) for passes in (self.first, later) if passes is not None]
            yield from [whole] * STEPS
            return
        lengths = records(
            epoch,
            limit=config.seq_len,
            micro_batch=config.micro_batch,
            ranks=config.data_parallel,
            seed=self.seed,
        )
        makes, adds = (
            Lengths(partial(_passes_at, config, keeps, self.stage), config.seq_len)
            for keeps in (True, not accumulates)
        )
        size = min(config.grad_accum, max(1, len(lengths) // STEPS))
        for start in range(0, len(lengths), size):
            head, *tail = lengths[start : start + size]
            yield [makes.at(head), *(adds.at(length) for length in tail)]

    def _load(self) -> None:
        """Weights in the model's order; a quantized one is on the device in 16 bits before."""
        config, timeline = self.config, self.timeline
        for weight in _in_order(self.first.links):
            if weight.trainable:
                self.trainable.append(weight)
            if not weight.packed:
                timeline.take(weight.numel * weight.itemsize)
                continue
            whole = timeline.take(
                weight.numel * 2 if config.quantization in QUANTIZED_ON_LOAD else 0
            )
            rows, columns = weight.shape[0], weight.shape[1]
            packed = packed_bytes(
                config.quantization,
                columns,
                rows,
                double=config.double_quant,
                group=config.gptq_group_size,
            )
            codes = min(packed, weight.numel // (1 if config.quantization == "int8" else 2))
            timeline.take(codes)
            if packed > codes:
                timeline.take(packed - codes)
            timeline.give(whole)

    def _buckets(self) -> None:
        left = sum(weight.numel * weight.itemsize for weight in self.trainable)
        while left > 0:
            self.timeline.take(min(left, BUCKET_BYTES))
            left -= BUCKET_BYTES

    def _micro_batch(self, found: AtLength) -> None:
        timeline, passes = self.timeline, self.passes
        inputs = [timeline.take(found.inputs // 2) for _ in range(2)]
        kept, passing = timeline.take(found.shared), timeline.take(found.passing)
        self._workspace()
        passes.forward(found.pieces)
        timeline.give(passing)
        self._workspace()
        passes.backward(found.pieces)
        timeline.give(kept)
        timeline.give_all(inputs)

    def _workspace(self) -> None:
        """The forward and the autograd thread take one each, when they first multiply."""
        if self.workspaces < 2:
            self.workspaces += 1
            self.timeline.take(workspace_bytes(self.config))

    def _update(self, *, first: bool) -> None:
        """Clip, step, and drop the gradients."""
        timeline = self.timeline
        timeline.scratch([NORM_BYTES] * len(self.trainable))
        alike = {weight: self._states(weight) for weight in set(self.trainable)}
        states = [alike[weight] for weight in self.trainable]
        if first:
            for nbytes, _, pieces in states:
                for _ in range(pieces):
                    timeline.take(nbytes // pieces)
        whole = optimizer_states(self.config.optimizer, self.trainable).step
        steps = [step for _, step, _ in states if step]
        if whole == sum(steps):
            timeline.scratch(steps)
        else:
            for step in steps:
                timeline.scratch([step])
        timeline.give_all(self.passes.gradients)

    def _states(self, weight: Weight) -> tuple[int, int, int]:
        """Bytes of one weight's states, of the temporaries of its step, and the states' number."""
        name = self.config.optimizer
        found = optimizer_states(name, [weight])
        if found.paged:
            return 0, found.step, 1
        return found.nbytes, found.step, 2 if "adam" in name else 1


def _passes_at(config: TrainConfig, keeps_gradients: bool, stage: int, length: int) -> RankPasses:
    return _on_stage(replace(config, seq_len=length), keeps_gradients, stage)


def _whole(passes: RankPasses) -> AtLength:
    return AtLength(
        pieces=tuple(pieces_of(passes.links)),
        inputs=passes.inputs,
        shared=passes.shared,
        passing=beside_named(passes),
    )


def _in_order(links: Iterable[Link]) -> Iterator[Weight]:
    """The weights as the model lists them, tied ones once."""
    seen: set[str] = set()
    for link in links:
        weights = [replace(weight, count=1) for weight in take_inventory((link,)).weights]
        for _ in range(link.count):
            for weight in weights:
                if weight.layered or weight.name not in seen:
                    seen.add(weight.name)
                    yield weight
