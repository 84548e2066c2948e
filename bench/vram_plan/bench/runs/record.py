"""From the end of a run to the measurement that is stored."""

from __future__ import annotations

import time
from typing import Any

from vram_plan.bench.environment import environment
from vram_plan.bench.measurement import Instant, Measurement, beside
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended
from vram_plan.bench.runs.store import new_id
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


def measurement_of(job: Job, planned: Plan, ended: Ended) -> Measurement:
    """What was seen, beside what was predicted before it was run."""
    seen = {} if ended.failure else ended.result or {}
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
        environment=environment(),
        step_seconds=tuple(seen.get("step_seconds", ())),
        warmup_seconds=tuple(seen.get("warmup_seconds", ())),
        losses=tuple(seen.get("losses", ())),
        failure=_failure(ended),
        samples=ended.samples,
        device_bytes=_device_bytes(ended.samples),
        run=_identity(job),
        plan=beside(planned, peak),
    )


def _device_bytes(samples: dict[str, Any] | None) -> int | None:
    """NVML's largest reading of the process; where containers hide processes, of the device."""
    found = (samples or {}).get("columns", {})
    for name in ("process_bytes", "used_bytes"):
        seen = [value for value in found.get(name, ()) if value is not None]
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
        "job": {
            "model": job.model,
            "options": dict(job.options),
            "layers": job.layers,
            "steps": job.steps,
            "warmup_steps": job.warmup_steps,
            "repeat": job.repeat,
            "seed": job.seed,
        },
    }
