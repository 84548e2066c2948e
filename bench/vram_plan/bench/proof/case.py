"""One case: the plan and the trace of one configuration side by side."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from vram_plan.bench.proof.sample import ATTEMPTS, Candidate, Slot, draw
from vram_plan.bench.translate import trace_config
from vram_plan.estimator.planner import Plan, plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.hf_config import from_hf_config

__all__ = ["Result", "run_slot"]

PHASES = {
    "forward": ("forward",),
    "loss": ("loss",),
    "loss_backward": ("backward",),
    "backward_last_layer": ("backward",),
    "backward_first_layer": ("backward",),
    "embedding_backward": ("backward",),
    "gradient_clipping": ("clip",),
    "optimizer_step": ("step",),
}
"""The plan's instants → the trace's phases."""
_HELD_BY_MODEL = ("activations", "buffers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came out of one place of the sample.

    Attributes:
        number: of the place.
        family: and ``method``, ``precision``: its cell.
        outcome: ``ok``, ``refused`` (no draw of the cell can be run) or ``error``.
        message: why, where it is not ``ok``.
        refusals: reasons of the draws before the one that ran.
        model: fields of the model that ran, and ``options`` of the plan.
        planned: the plan's peak and ``traced`` the trace's, in bytes.
        instant: the plan's peak instant and ``phase`` the trace's.
        components: component → bytes planned, bytes traced at the peak.
        seconds: what the trace took.
    """

    number: int
    family: str
    method: str
    precision: str
    outcome: str
    message: str = ""
    refusals: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    planned: int = 0
    traced: int = 0
    instant: str = ""
    phase: str = ""
    components: dict[str, tuple[int, int]] = field(default_factory=dict)
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
            found = compare(candidate)
        except ValueError as refusal:
            refusals.append(f"{candidate.model['model_type']}: {refusal}")
            continue
        return _result(
            slot,
            "ok",
            refusals=refusals,
            model=candidate.model,
            options=candidate.options,
            seconds=time.perf_counter() - started,
            **found,
        )
    return _result(slot, "refused", message=refusals[-1], refusals=refusals)


def _result(slot: Slot, outcome: str, **more: Any) -> Result:
    return Result(
        number=slot.number,
        family=slot.family,
        method=slot.method,
        precision=slot.precision,
        outcome=outcome,
        **more,
    )


def compare(candidate: Candidate) -> dict[str, Any]:
    """Peaks and components of plan and trace.

    Raises:
        ValueError: where the plan, the tracer or PEFT refuses the configuration.
    """
    from vram_plan.bench.trace import trace_step

    spec = from_hf_config(candidate.model, name="proof", source="proof")
    config = resolve(spec, candidate.options)
    translated = trace_config(config, candidate.model)
    planned = plan_config(config)
    trace = trace_step(translated)
    memory = planned.memory
    phases = PHASES[memory.peak_instant]
    phase = max(phases, key=lambda name: trace.phase_peaks.get(name, 0))
    return {
        "planned": memory.allocated_bytes,
        "traced": trace.peak_bytes,
        "instant": memory.peak_instant,
        "phase": trace.peak_phase,
        "components": _paired(planned, trace.components(phase)),
    }


def _paired(planned: Plan, traced: dict[str, int]) -> dict[str, tuple[int, int]]:
    ours = planned.memory.components
    return {
        name: (ours.get(name, 0), traced.get(name, 0))
        for name in {**ours, **traced}
        if ours.get(name, 0) or traced.get(name, 0)
    }
