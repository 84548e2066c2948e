"""What the device reports for the process, beyond what PyTorch's allocator has handed out.

NVML sees the CUDA context, communication buffers and the allocator's cache. Where the timeline of a
run is known the cache follows from a replay (``reserved.py``); elsewhere, and for the buffers, the
shares are fitted on published readings by strata (``profiles.calibration``), with the range in
which 90 % of the readings fell that a fit had not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import OUTSIDE_THE_STEP
from vram_plan.estimator.memory import Memory
from vram_plan.estimator.overhead import MADE_WITHIN_THE_STEP, rank_groups
from vram_plan.profiles.calibration import DeviceFit, load_calibration

__all__ = [
    "DeviceReading",
    "cached_churn",
    "churn_bytes",
    "device_reading",
    "outside_bytes",
    "stratum_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """Bytes the device reports: in the middle, and the range of 90 % of runs.

    Attributes:
        bytes: the middle.
        low: 5 % of readings are below.
        high: 5 % of readings are above.
        reserved: the part of the middle that PyTorch's allocator holds.
    """

    bytes: int
    low: int
    high: int
    reserved: int


def stratum_of(config: TrainConfig) -> str:
    """Runs whose cache behaves alike: scale, how the loss is computed, what learns."""
    scale = "one GPU" if config.gpus == 1 else "several GPUs"
    learning = "full" if config.method == "full" else "adapters"
    loss = config.loss if config.loss in {"hf", "fused-ce"} else "no logits"
    return f"{scale}/{loss}/{learning}"


def churn_bytes(memory: Memory) -> int:
    """The most that is alive at one instant of what is made and freed within the step."""
    ledger = memory.ledger
    return max(
        sum(ledger.components(instant)[name] for name in MADE_WITHIN_THE_STEP)
        for instant in ledger.instants
        if instant not in OUTSIDE_THE_STEP
    )


def outside_bytes(memory: Memory) -> int:
    """CUDA context and communication buffers: what the allocator does not hand out."""
    return memory.overhead_bytes - memory.workspace_bytes


def device_reading(config: TrainConfig, memory: Memory) -> DeviceReading | None:
    """The reading to expect, capped by the card where one is named; None without a fit."""
    fit = load_calibration().fit_of(stratum_of(config))
    if fit is None or not config.training:
        return None
    most = config.gpu.usable_bytes if config.gpu else None
    outside = outside_bytes(memory) + fit.fixed_bytes * (1 + len(rank_groups(config)))
    middle = _reserved(fit, config, memory) + outside
    reading = _capped(middle, most, memory)
    return DeviceReading(
        bytes=reading,
        low=max(_capped(fit.low * middle, most, memory), memory.allocated_bytes),
        high=_capped(fit.high * middle, most, memory),
        reserved=max(reading - outside, memory.allocated_bytes),
    )


def cached_churn(config: TrainConfig, memory: Memory) -> int:
    """The churn of which a share is cached beyond what is known.

    None of it where several GPUs were replayed, every stream by itself: there readings ask for no
    more. On one GPU a share remains, as lengths and evaluation differ in ways rows do not state.
    """
    replayed = memory.reserve is not None
    return 0 if replayed and config.gpus > 1 else churn_bytes(memory)


def _reserved(fit: DeviceFit, config: TrainConfig, memory: Memory) -> float:
    """What the allocator holds on a card without an end."""
    cached = fit.churn_share * cached_churn(config, memory)
    known = memory.reserved_bytes
    return (memory.allocated_bytes if known is None else known) + cached


def _capped(nbytes: float, most: int | None, memory: Memory) -> int:
    """On a full card the allocator gives its cache back; what is allocated stays."""
    if most is None or nbytes <= most:
        return round(nbytes)
    return max(most, memory.allocated_bytes)
