"""One case: the plan and the trace of one configuration side by side."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from vram_plan.bench.instants import INNER_LAYERS
from vram_plan.bench.measurement import Instant
from vram_plan.bench.proof.sample import ATTEMPTS, Candidate, Slot, draw
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.config import TrainConfig, ZeroSizes
from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.sharding.zero_parts import REDUCTION
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    EMBEDDING_BACKWARD,
    LOSS_BACKWARD,
)
from vram_plan.profiles.hf_config import from_hf_config

__all__ = ["Peak", "Result", "configured", "paired", "peak_of", "result", "run_slot", "traced_as"]

_PLANNED = {
    INNER_LAYERS: (BACKWARD_LAST, BACKWARD_FIRST),
    "backward": (LOSS_BACKWARD, BACKWARD_LAST, BACKWARD_FIRST, EMBEDDING_BACKWARD, REDUCTION),
}
"""A trace's instants that are several of the plan's: the plan brackets the inner layers by the
ends of the stack; where a trace knows no modules the backward pass is one instant."""


class Traced(Protocol):
    """A trace, whichever way it was made."""

    @property
    def instants(self) -> tuple[Instant, ...]:
        """The fullest moment of every instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A trace's peak: what a result keeps, so that another plan can be held against it.

    Attributes:
        bytes: alive then.
        instant: its instant.
        components: component → bytes.
    """

    bytes: int
    instant: str
    components: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out of one place of the sample.

    Attributes:
        number: of the place.
        family: and ``method``, ``precision``: its cell; ``sharding`` and ``size`` are its setup.
        outcome: ``ok``, ``refused`` (no draw of the cell can be run) or ``error``.
        message: why, where it is not ``ok``.
        refusals: reasons of the draws before the one that ran.
        model: fields of the model that ran, and ``options`` of the plan.
        planned: the plan's peak and ``traced`` the trace's, in bytes.
        instant: the plan's peak instant and ``traced_instant`` the trace's.
        components: component → bytes planned, bytes traced in the instant of the trace's peak.
        traced_as: a digest of the step that was traced.
        seconds: what the trace took.
    """

    number: int
    family: str
    method: str
    precision: str
    sharding: str
    size: str
    outcome: str
    message: str = ""
    refusals: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    planned: int = 0
    traced: int = 0
    instant: str = ""
    traced_instant: str = ""
    components: dict[str, tuple[int, int]] = field(default_factory=dict)
    traced_as: str = ""
    seconds: float = 0.0

    @property
    def error(self) -> float:
        """Planned over traced, less one."""
        return self.planned / self.traced - 1

    @property
    def component_error(self) -> float:
        """The largest difference of a component, as a share of the peak."""
        gaps = (abs(ours - theirs) for ours, theirs in self.components.values())
        return max(gaps, default=0) / self.traced

    def as_row(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def run_slot(slot: Slot) -> Result:
    """Draw until a configuration runs; count those that are refused."""
    refusals: list[str] = []
    for attempt in range(ATTEMPTS):
        candidate = draw(slot, attempt)
        started = time.perf_counter()
        try:
            config = configured(candidate)
            trace = _trace(config, candidate.model, slot.size)
        except ValueError as refusal:
            refusals.append(f"{candidate.model['model_type']}: {refusal}")
            continue
        seconds = time.perf_counter() - started
        found = paired(config, peak_of(trace)) | {"seconds": seconds}
        found |= {"refusals": refusals, "traced_as": traced_as(config, candidate.model)}
        return result(slot, "ok", model=candidate.model, options=candidate.options, **found)
    return result(slot, "refused", message=refusals[-1], refusals=refusals)


def result(slot: Slot, outcome: str, **more: Any) -> Result:
    """The result of a place."""
    return Result(
        number=slot.number,
        family=slot.family,
        method=slot.method,
        precision=slot.precision,
        sharding=slot.sharding,
        size=slot.size,
        outcome=outcome,
        **more,
    )


def configured(candidate: Candidate) -> TrainConfig:
    """The plan's configuration.

    Raises:
        ValueError: where the plan refuses it.
    """
    options = dict(candidate.options)
    if "zero_sizes" in options:
        options["zero_sizes"] = ZeroSizes(**options["zero_sizes"])
    return resolve(from_hf_config(candidate.model, name="proof", source="proof"), options)


def traced_as(config: TrainConfig, model: dict[str, Any]) -> str:
    """A digest of the step that the tracer runs: where it is equal, so is the trace.

    Raises:
        ValueError: where the tracer refuses the configuration.
    """
    from vram_plan.bench.virtual.case import zero_case

    step = trace_config(config, model) if config.zero is None else zero_case(config, model)
    said = json.dumps(asdict(step), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def peak_of(trace: Traced) -> Peak:
    """The fullest moment of a trace; the first of several."""
    fullest = max(trace.instants, key=lambda instant: instant.bytes)
    return Peak(
        bytes=fullest.bytes, instant=fullest.name, components=dict(fullest.components or {})
    )


def _trace(config: TrainConfig, model: dict[str, Any], size: str) -> Traced:
    """The trace; a published model's is extended from shallow ones.

    Raises:
        ValueError: where the tracer or PEFT refuses the configuration.
    """
    from vram_plan.bench.trace import trace_deep, trace_step

    translated = trace_config(config, model)
    return trace_deep(translated) if size == "full" else trace_step(translated)


def paired(config: TrainConfig, traced: Peak) -> dict[str, Any]:
    """Plan beside trace: the peaks, and the components where the trace has its peak.

    Two instants may be equally full to a fraction of a percent, and plan and trace then name
    different ones. What is alive is compared in one and the same instant, the trace's.
    """
    memory = plan_config(config).memory
    same = _PLANNED.get(traced.instant, (traced.instant,))
    instant = max(same, key=lambda name: memory.instants.get(name, 0))
    ours, theirs = memory.ledger.components(instant), traced.components
    both = {name: (ours.get(name, 0), theirs.get(name, 0)) for name in {**ours, **theirs}}
    return {
        "planned": memory.allocated_bytes,
        "traced": traced.bytes,
        "instant": memory.peak_instant,
        "traced_instant": traced.instant,
        "components": {name: pair for name, pair in both.items() if any(pair)},
    }
