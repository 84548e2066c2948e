"""Stored runs beside their predictions: memory by instant and component, time, and what fits."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["SCHEMA", "boundaries", "compared", "comparison"]

SCHEMA = "vram-plan/comparison/1"
_BACKWARD = ("loss_backward", "backward_last_layer", "backward_first_layer", "embedding_backward")
_GPU_BACKWARD = "backward"
"""A device that knows no modules tells the backward pass as one instant."""
_P95 = 0.95

Document = Mapping[str, Any]


def comparison(documents: Iterable[Document]) -> dict[str, Any]:
    """All runs, the boundaries found among them, and the errors together."""
    known = list(documents)
    runs = [compared(one) for one in known]
    return {
        "schema": SCHEMA,
        "runs": runs,
        "boundaries": boundaries(known),
        "summary": {name: _summary(runs, name) for name in ("allocated", "step")},
    }


def compared(document: Document) -> dict[str, Any]:
    """One run: every figure measured and predicted, with predicted / measured − 1."""
    plan, memory, run = document["plan"] or {}, document["memory"], document["run"]
    seconds = document["step_seconds"]
    measured = statistics.median(seconds) if seconds else None
    return {
        "id": run["id"],
        "name": _name(document),
        "outcome": document["outcome"],
        "error": document["error"],
        "device": document["device"],
        "virtual_ranks": document["virtual_ranks"],
        "allocated": _allocated(memory, plan),
        "instants": _instants(memory, plan),
        "components": _components(run.get("states") or {}, plan.get("components") or {}),
        "step": _pair(measured, plan.get("step_seconds")),
        "verdict": run.get("verdict"),
        "left_bytes": (run.get("after") or {}).get("left_bytes"),
        "notes": list(document["notes"]),
    }


def _name(document: Document) -> str:
    job = document["run"]["job"]
    own = {k: v for k, v in job.items() if k in ("layers", "ranks", "loop", "data", "repeat") and v}
    options = {**own, **job.get("options", {})}
    words = " ".join(f"{name}={value}" for name, value in options.items())
    return f"{document['model']['name']} {words}".strip()


def _allocated(memory: Document, plan: Document) -> dict[str, Any]:
    """The peak; no error where the run says that the two cannot be compared."""
    found = _pair(memory["allocated_bytes"], plan.get("allocated_bytes"))
    return found | ({"error": None} if plan.get("error") is None else {})


def _instants(memory: Document, plan: Document) -> dict[str, dict[str, Any]]:
    seen = dict(memory["instants"])
    planned = dict(plan.get("instants") or {})
    if _GPU_BACKWARD in seen:
        parts = [planned.pop(name) for name in _BACKWARD if name in planned]
        parts += [planned.pop("gradient_reduction")] if "gradient_reduction" in planned else []
        planned[_GPU_BACKWARD] = max(parts, default=None)
    if "gradient_clipping" in planned and "gradient_clipping" not in seen:
        # DeepSpeed clips within its own step.
        clipping = planned.pop("gradient_clipping")
        planned["optimizer_step"] = max(clipping, planned["optimizer_step"])
    return {name: _pair(value, planned.get(name)) for name, value in seen.items()}


def _components(states: Mapping[str, int], planned: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """What lives all the time; the rest no device tells apart."""
    return {name: _pair(value, planned.get(name)) for name, value in states.items()}


def _pair(measured: float | None, predicted: float | None) -> dict[str, Any]:
    known = measured and predicted is not None
    return {
        "measured": measured,
        "predicted": predicted,
        "error": predicted / measured - 1 if known and measured and predicted is not None else None,
    }


def _summary(runs: Iterable[Mapping[str, Any]], name: str) -> dict[str, Any]:
    errors = sorted(abs(run[name]["error"]) for run in runs if run[name]["error"] is not None)
    if not errors:
        return {"n": 0, "median": None, "p95": None, "max": None}
    place = min(len(errors) - 1, int(_P95 * len(errors)))
    return {
        "n": len(errors),
        "median": statistics.median(errors),
        "p95": errors[place],
        "max": errors[-1],
    }


def boundaries(documents: Iterable[Document]) -> list[dict[str, Any]]:
    """Configurations run at several batches: the largest that ran, the first that did not.

    ``predicted`` is the largest batch of those run that the plan said would fit.
    """
    groups: dict[str, dict[int, Document]] = {}
    for document in documents:
        job = document["run"]["job"]
        options = {k: v for k, v in job.get("options", {}).items() if k != "micro_batch"}
        key = json.dumps({**job, "options": options, "repeat": 0, "device": document["device"]})
        size = int(document["config"]["micro_batch"])
        groups.setdefault(key, {})[size] = document
    return [_boundary(runs) for runs in groups.values() if len(runs) > 1]


def _boundary(runs: Mapping[int, Document]) -> dict[str, Any]:
    ran = [size for size, one in runs.items() if one["outcome"] == "ok"]
    full = [size for size, one in runs.items() if one["outcome"] == "oom"]
    told = {size: (one["plan"] or {}).get("fits") for size, one in runs.items()}
    return {
        "name": _name(next(iter(runs.values()))).partition(" micro_batch=")[0],
        "largest_ok": max(ran, default=None),
        "smallest_oom": min(full, default=None),
        "predicted": max((size for size, fits in told.items() if fits), default=None),
        "wrongly_fits": sorted(size for size in full if told[size]),
        "wrongly_refused": sorted(size for size in ran if told[size] is False),
    }
