"""From a configuration to a plan: the ledger of the fullest rank and where it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vram_plan.estimator.choices import MEGATRON_BLOCKS
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.device import DeviceReading, device_reading
from vram_plan.estimator.fit import Fit, fits
from vram_plan.estimator.ledger import Entry, Ledger
from vram_plan.estimator.memory import Memory
from vram_plan.estimator.overhead import (
    is_modelled,
    overhead_bytes,
    unlisted_workspaces,
    workspace_entries,
)
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.sharding.base import Rank, input_entries
from vram_plan.estimator.sharding.pipeline import stages
from vram_plan.estimator.step import TRAINING, pass_entries
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.model import ModelSpec
from vram_plan.profiles.models import resolve_model

if TYPE_CHECKING:
    from vram_plan.estimator.speed.cost import Cost, Workload
    from vram_plan.estimator.speed.step_time import StepTime

_ENGINES = {
    "torch": "replicated",
    "ddp": "replicated",
    "deepspeed": "zero",
    "fsdp1": "fsdp1",
    "fsdp2": "fsdp2",
    "megatron": "megatron",
    "device-map": "device_map",
    "megatron-deepspeed": "zero",
    "nanotron": "megatron",
    "internevo": "zero",
    "colossalai": "zero",
}
"""Engine → module of ``sharding`` with ``entries(rank)`` and ``keeps_gradients(config)``.

One may have ``links(rank)`` too: the chain with what the engine holds beside each segment.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A configuration with its predictions.

    Attributes:
        config: every option, resolved.
        memory: bytes on the fullest rank.
        parameters: parameters of the base model.
        trainable_parameters: parameters that learn, adapters included.
        workload: how much is trained and at which prices; None: the catalogue's prices alone.
    """

    config: TrainConfig
    memory: Memory
    parameters: int
    trainable_parameters: int
    workload: Workload | None = None

    @property
    def model(self) -> ModelSpec:
        """The architecture."""
        return self.config.model

    @cached_property
    def device(self) -> DeviceReading | None:
        """What the device reports for the process, and where 90 % of such readings fell."""
        return device_reading(self.config, self.memory)

    @cached_property
    def step(self) -> StepTime | None:
        """Seconds of an optimizer step; None without a GPU or where it is not modelled."""
        from vram_plan.estimator.speed.step_time import step_time  # plans without --gpu skip it

        return step_time(self.config)

    @cached_property
    def cost(self) -> Cost | None:
        """Dollars and energy; None without a GPU or where the step is not modelled."""
        from vram_plan.estimator.speed.cost import cost_of  # likewise

        return cost_of(self.config, self.step, self.workload)

    @cached_property
    def fits(self) -> tuple[Fit, ...]:
        """The verdict for the GPU asked about, or for every GPU of the catalogue."""
        return fits(self.config, self.memory)


def plan(model: str | ModelSpec, **options: Any) -> Plan:
    """Predict the memory of a fine-tune.

    Args:
        model: a name, a size class, a path, a hub id or a ``ModelSpec``.
        **options: the command line's options with underscores (``gpus=8, zero=2``); those left
            out take the command line's defaults.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    spec = resolve_model(model) if isinstance(model, str) else model
    if isinstance(options.get("gpu"), str):
        options["gpu"] = find_gpu(options["gpu"])
    return plan_config(resolve(spec, options))


def plan_config(config: TrainConfig, *, stage: int | None = None) -> Plan:
    """Predict the memory of a resolved configuration.

    Args:
        config: every option, resolved.
        stage: the pipeline stage to look at, counted among the distinct ones: 0 is the first, -1
            the last; None is the fullest.
    """
    if config.training:
        ledger, parameters, trainable = train_ledger(config, stage=stage)
    else:
        from vram_plan.estimator.inference import inference_ledger

        ledger, parameters, trainable = inference_ledger(config)
    return Plan(
        config=config,
        memory=memory_of(config, ledger),
        parameters=parameters,
        trainable_parameters=trainable,
    )


def memory_of(config: TrainConfig, ledger: Ledger) -> Memory:
    """The totals of a ledger, and what the device adds to them."""
    return Memory(
        ledger=ledger,
        instants=ledger.totals(),
        overhead_bytes=overhead_bytes(config),
        workspace_bytes=unlisted_workspaces(config),
        reserve=partial(_reserve, config) if is_modelled(config) else None,
    )


def _reserve(config: TrainConfig, allocated: int) -> int:
    from vram_plan.estimator.reserved import reserved_bytes  # only a few ask for it

    return reserved_bytes(config, allocated)


def train_ledger(config: TrainConfig, *, stage: int | None = None) -> tuple[Ledger, int, int]:
    """The ledger of one training step on the fullest rank, and the parameters of the model.

    With ``stage`` it is that of a rank of this pipeline stage (0 the first, -1 the last).
    """
    refuse_idle(config)
    ledgers = rank_ledgers(config)
    found = fullest(ledgers) if stage is None else ledgers[stage]
    return found, *count_parameters(config)


def rank_ledgers(config: TrainConfig) -> list[Ledger]:
    """The ledger of every distinct pipeline stage's rank."""
    engine = engine_of(config)
    passes = run_passes(config, keeps_gradients=engine.keeps_gradients(config))
    ranks = stages(config, passes) if config.pp > 1 else (Rank(config=config, passes=passes),)
    return [_ledger(engine, rank) for rank in ranks]


def fullest(ledgers: list[Ledger]) -> Ledger:
    """The ledger with the fullest instant."""
    return max(ledgers, key=lambda ledger: max(ledger.totals().values()))


def refuse_idle(config: TrainConfig) -> None:
    """Refuse a method that finds nothing to train in this model (BitFit without biases)."""
    if config.method not in {"bitfit", "freeze"}:
        return
    small = replace(config, loss="hf", micro_batch=1, seq_len=1, source_len=1, cp=1)
    if not run_passes(small, keeps_gradients=True).inventory.numel(trainable=True):
        raise ValueError(
            f"--method {config.method}: {config.model.name} has no weights of that kind that could "
            "learn; choose --method lora"
        )


def count_parameters(config: TrainConfig) -> tuple[int, int]:
    """Parameters of the whole base model, and those that learn (adapters included)."""
    if config.tp * config.ep > 1 or config.engine in MEGATRON_BLOCKS:
        config = replace(config, engine="torch", gpus=1, gpus_per_node=1, tp=1, pp=1, cp=1, ep=1)
    keeps = engine_of(config).keeps_gradients(config)  # the ledger's passes, run already
    inventory = run_passes(config, keeps_gradients=keeps).inventory
    return inventory.numel(added=False), inventory.numel(trainable=True)


def engine_of(config: TrainConfig) -> ModuleType:
    """How its engine holds weights, gradients and states."""
    return import_module(f"vram_plan.estimator.sharding.{_ENGINES[config.engine]}")


def _ledger(engine: ModuleType, rank: Rank) -> Ledger:
    """One rank's ledger: what the engine holds, the inputs, and what the passes make."""
    rearrange = getattr(engine, "links", None)
    links = rearrange(rank) if rearrange else rank.passes.links
    passes = rank.passes.entries if links is rank.passes.links else pass_entries(links)
    entries: list[Entry] = [*engine.entries(rank), *input_entries(rank), *passes]
    entries += workspace_entries(rank.config)
    return Ledger(getattr(engine, "INSTANTS", TRAINING), [*entries, *rank.waiting])
