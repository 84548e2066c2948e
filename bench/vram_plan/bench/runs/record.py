"""From the end of a run to the measurement that is stored."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from vram_plan.bench.environment import environment
from vram_plan.bench.measurement import Instant, Measurement, beside
from vram_plan.bench.runs.calibrated import CALIBRATED, calibrated_seconds
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended
from vram_plan.bench.runs.steadiness import verdict
from vram_plan.bench.runs.store import new_id
from vram_plan.bench.runs.window import columns_of, timed_window
from vram_plan.estimator.planner import Plan

__all__ = ["measurement_of"]

_SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "is_gated_act",
    "vocab_size",
    "tie_word_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
"""What a reader needs who has not the model's `config.json`."""


_VIRTUAL = (
    "one rank of {ranks} on a fake process group: nothing is sent, so there is no speed, no loss "
    "and no communication buffer"
)
_ONE_MEMORY = "host and device are one memory on a CPU, so what is offloaded is counted too"
_MARKED = ("stage", "number", "at")


def measurement_of(
    job: Job, planned: Plan, ended: Ended, machine: dict[str, Any] | None = None
) -> Measurement:
    """What was seen, beside what was predicted before it was run.

    Args:
        job: what was run.
        planned: the prediction.
        ended: how it ended.
        machine: what was found before the run and left behind after it.
    """
    seen = {} if ended.failure else ended.result or {}
    one_memory = job.device == "cpu" and planned.config.offload != "none"
    timed = None if job.virtual or one_memory else _calibrated(planned, job.device)
    instants = tuple(
        Instant(name=name, bytes=size) for name, size in seen.get("instants", {}).items()
    )
    peak = max((instant.bytes for instant in instants), default=None)
    return Measurement(
        outcome=ended.failure.outcome if ended.failure else "ok",
        error=ended.failure.message if ended.failure else None,
        device=job.device,
        config=planned.config.options(),
        model={
            "name": planned.model.name,
            "parameters": seen.get("parameters", planned.parameters),
            "trainable_parameters": seen.get("trainable_parameters", planned.trainable_parameters),
            "source": planned.model.source,
            "shape": {name: getattr(planned.model, name) for name in _SHAPE},
        },
        instants=instants,
        reserved_bytes=seen.get("reserved_bytes"),
        layers=planned.model.num_hidden_layers,
        seconds={"run": ended.seconds},
        environment=environment() | {"cuda": seen.get("cuda")},
        step_seconds=tuple(seen.get("step_seconds", ())),
        warmup_seconds=tuple(seen.get("warmup_seconds", ())),
        losses=_finite(seen.get("losses", ())),
        failure=_failure(ended),
        samples=ended.samples,
        device_bytes=None if job.virtual else _device_bytes(ended.samples),
        virtual_ranks=job.virtual,
        notes=(*_notes(job, one_memory=one_memory), *([CALIBRATED] if timed else [])),
        run=_identity(job) | _about(job, seen, ended) | (machine or {}),
        plan=_predicted(planned, None if one_memory else peak, timed),
    )


def _finite(losses: Sequence[float]) -> tuple[float, ...]:
    """Numbers that JSON knows; the run's verdict tells of others."""
    return tuple(losses) if all(map(math.isfinite, losses)) else ()


def _notes(job: Job, *, one_memory: bool) -> tuple[str, ...]:
    virtual = [_VIRTUAL.format(ranks=job.virtual)] if job.virtual else []
    return (*virtual, *([_ONE_MEMORY] if one_memory else []))


def _about(job: Job, seen: dict[str, Any], ended: Ended) -> dict[str, Any]:
    """Of the run itself: its data, its states, its verdict, and when each stage began."""
    names = ("data", "states", "alloc_retries")
    steps = seen.get("step_seconds", ())
    timed = timed_window(ended.samples, ended.marks, job.warmup_steps, len(steps))
    return {
        "window": timed,
        **{name: seen.get(name) for name in names},
        "verdict": _judged(seen, timed) if seen else None,
        "marks": [{name: mark.get(name) for name in _MARKED} for mark in ended.marks],
    }


def _judged(seen: dict[str, Any], timed: dict[str, Any] | None) -> dict[str, Any]:
    """The run's verdict, with what the GPU and its allocator say against the figures."""
    found = verdict(seen.get("step_seconds", ()), seen.get("losses", ()))
    if timed and timed["throttled"]:
        share = timed["slowed_share"]
        found["reasons"].append(f"the GPU was slowed down in {share:.0%} of the samples")
    if seen.get("alloc_retries"):
        found["reasons"].append("memory was full: the allocator freed its cache and tried again")
    return found


def _calibrated(planned: Plan, device: str) -> float | None:
    """Seconds of a step by this machine's own profile, where there is one."""
    gpu = planned.config.gpu
    return calibrated_seconds(planned.config, device, gpu.name if gpu else None)


def _predicted(planned: Plan, peak: int | None, timed: float | None) -> dict[str, Any]:
    """The plan, with what it says of a GPU that it knows, or of a machine that was measured."""
    step = planned.step if planned.config.gpu else None
    return beside(planned, peak) | {
        "required_bytes": planned.memory.required_bytes,
        "step_seconds": timed or (step.seconds if step else None),
        "gpu": planned.config.gpu.name if planned.config.gpu else None,
        "fits": planned.fits[0].fits if planned.config.gpu else None,
    }


def _device_bytes(samples: dict[str, Any] | None) -> int | None:
    """NVML's largest reading of a GPU's process; where containers hide processes, of a GPU."""
    found = (samples or {}).get("columns", {})
    for name in ("process_bytes", "used_bytes"):
        seen = [value for one in columns_of(found, name) for value in one if value is not None]
        if seen:
            return int(max(seen))
    return None


def _failure(ended: Ended) -> dict[str, Any] | None:
    if ended.failure is None:
        return None
    return {
        "stage": ended.stage,
        "whose": ended.failure.whose,
        "requested_bytes": ended.failure.requested_bytes,
        "log_tail": ended.log[-2000:],
    }


def _identity(job: Job) -> dict[str, Any]:
    return {
        "id": new_id(),
        "key": job.key,
        "series": job.series,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "job": {name: value for name, value in job.said().items() if name != "device"},
    }
