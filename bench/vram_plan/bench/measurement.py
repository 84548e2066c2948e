"""What a run was seen to do, on whatever device: schema ``vram-plan/measurement/1``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vram_plan.estimator.ledger import COMPONENTS, MODEL_STATES
from vram_plan.estimator.planner import Plan

__all__ = ["OUTCOMES", "SCHEMA", "Instant", "Measurement", "beside"]

SCHEMA = "vram-plan/measurement/1"
OUTCOMES = ("ok", "oom", "error", "hang", "timeout", "crash", "killed", "cancelled")
DEVICES = ("fake", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """The fullest moment of one instant of the step.

    Attributes:
        name: the plan's word for it.
        bytes: alive then, on the device.
        components: the same by component; None where the device cannot tell them apart.
    """

    name: str
    bytes: int
    components: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise ValueError(f"instant {self.name}: {self.bytes} bytes; must not be negative")
        unknown = set(self.components or ()) - set(COMPONENTS)
        if unknown:
            raise ValueError(
                f"instant {self.name}: unknown components {', '.join(sorted(unknown))}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run of one configuration; an out-of-memory run is a measurement too.

    Attributes:
        outcome: one of ``OUTCOMES``.
        error: what the library said, for outcomes other than ``ok``.
        device: ``fake``, ``cpu`` or ``cuda``.
        config: every resolved option under its command-line name.
        model: name, parameters, trainable parameters, source.
        instants: the fullest moment of each, in the order of the step.
        states_bytes: bytes by component when the step begins: what lives all the time.
        reserved_bytes: the caching allocator's peak, or None.
        device_bytes: NVML's reading, or None.
        host_bytes: per node.
        layers: blocks of the model, or None where the run did not get that far.
        extended_from: depths really run when the rest is their exact extension.
        virtual_ranks: one rank of so many, on a fake process group; None for a real one.
        seconds: what took how long (``imports``, ``trace``).
        timeline: live bytes over the step's events, ``(phase, bytes)``; empty when extended.
        environment: versions and machine, without names of hosts or users.
        notes: what a reader must know.
        step_seconds: of every timed optimizer step, raw; empty where nothing was computed.
        warmup_seconds: of the untimed ones before.
        losses: of the batch before the first and after the last step.
        failure: how a run failed: ``stage``, ``whose`` memory, ``requested_bytes``.
        samples: what the sampler saw, by column.
        run: identity of a stored run: ``id``, ``key``, ``series``, ``created_utc`` and its job.
        plan: what the plan predicts for the same configuration.
    """

    outcome: str
    device: str
    config: Mapping[str, Any]
    model: Mapping[str, Any]
    error: str | None = None
    instants: tuple[Instant, ...] = ()
    states_bytes: Mapping[str, int] = field(default_factory=dict)
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    host_bytes: int = 0
    layers: int | None = None
    extended_from: tuple[int, ...] | None = None
    virtual_ranks: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    timeline: tuple[tuple[str, int], ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    step_seconds: tuple[float, ...] = ()
    warmup_seconds: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    failure: Mapping[str, Any] | None = None
    samples: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r} is not one of: {', '.join(OUTCOMES)}")
        if self.device not in DEVICES:
            raise ValueError(f"device {self.device!r} is not one of: {', '.join(DEVICES)}")
        if self.outcome == "ok" and not self.instants:
            raise ValueError("a run that ended well has instants")

    @property
    def peak(self) -> Instant | None:
        """The instant with most bytes."""
        return max(self.instants, key=lambda instant: instant.bytes, default=None)

    @property
    def allocated_bytes(self) -> int | None:
        """The step's peak."""
        return self.peak.bytes if self.peak else None

    def to_document(self) -> dict[str, Any]:
        """Plain values; what was not seen is None, never 0."""
        peak = self.peak
        states = sum(self.states_bytes.get(name, 0) for name in MODEL_STATES)
        return {
            "schema": SCHEMA,
            "outcome": self.outcome,
            "error": self.error,
            "device": self.device,
            "virtual_ranks": self.virtual_ranks,
            "model": dict(self.model),
            "config": dict(self.config),
            "memory": {
                "allocated_bytes": self.allocated_bytes,
                "reserved_bytes": self.reserved_bytes,
                "device_bytes": self.device_bytes,
                "required_bytes": None,
                "interval_bytes": None,
                "peak_instant": peak.name if peak else None,
                "instants": {instant.name: instant.bytes for instant in self.instants},
                "components": _all_components(peak.components) if peak else None,
                "instant_components": {
                    instant.name: _all_components(instant.components) for instant in self.instants
                },
                "model_states_bytes": states if self.states_bytes else None,
                "host_bytes": self.host_bytes if peak else None,
                "nvme_bytes": None,
            },
            "layers": self.layers,
            "extended_from": list(self.extended_from) if self.extended_from else None,
            "timeline": [list(point) for point in self.timeline],
            "seconds": dict(self.seconds),
            "environment": dict(self.environment),
            "notes": list(self.notes),
            "step_seconds": list(self.step_seconds),
            "warmup_seconds": list(self.warmup_seconds),
            "losses": list(self.losses),
            "failure": dict(self.failure) if self.failure else None,
            "samples": dict(self.samples) if self.samples else None,
            "run": dict(self.run) if self.run else None,
            "plan": dict(self.plan) if self.plan else None,
        }


def beside(planned: Plan, allocated_bytes: int | None) -> dict[str, Any]:
    """What the plan predicts, and by how much it is off."""
    memory = planned.memory
    error = memory.allocated_bytes / allocated_bytes - 1 if allocated_bytes else None
    return {
        "allocated_bytes": memory.allocated_bytes,
        "peak_instant": memory.peak_instant,
        "instants": memory.instants,
        "components": memory.components,
        "error": error,
    }


def _all_components(seen: Mapping[str, int] | None) -> dict[str, int] | None:
    if seen is None:
        return None
    return dict.fromkeys(COMPONENTS, 0) | dict(seen)
