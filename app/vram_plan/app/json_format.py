"""The plan as JSON: schema ``vram-plan/plan/1`` (``schemas/plan.json``)."""

from __future__ import annotations

import json
from typing import Any

import click

from vram_plan.app.speed_text import (
    cost_document,
    gap_lines,
    step_document,
    transfer_documents,
)
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.planner import Plan

SCHEMA = "vram-plan/plan/1"


def show(plan: Plan, *, explain: bool) -> None:
    """Print the document."""
    document = to_document(plan)
    if explain:
        document["ledger"] = ledger_document(plan)
        document["transfers"] = transfer_documents(plan)
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def to_document(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; what is not modelled is None, never 0."""
    memory, model = plan.memory, plan.model
    return {
        "schema": SCHEMA,
        "model": {
            "name": model.name,
            "parameters": plan.parameters,
            "trainable_parameters": plan.trainable_parameters,
            "source": model.source,
        },
        "config": plan.config.options(),
        "assumptions": [*plan.config.assumptions, *gap_lines(plan)],
        "memory": {
            "allocated_bytes": memory.allocated_bytes,
            "reserved_bytes": memory.reserved_bytes,
            "device_bytes": plan.device.bytes if plan.device else None,
            "required_bytes": memory.required_bytes,
            "interval_bytes": [plan.device.low, plan.device.high] if plan.device else None,
            "peak_instant": memory.peak_instant,
            "instants": memory.instants,
            "components": memory.components,
            "model_states_bytes": memory.model_states_bytes,
            "host_bytes": memory.host_bytes,
            "nvme_bytes": memory.nvme_bytes,
        },
        "step": step_document(plan),
        "cost": cost_document(plan),
        "fits": [
            {
                "gpu": fit.gpu,
                "memory_bytes": fit.memory_bytes,
                "usable_bytes": fit.usable_bytes,
                "fits": fit.fits,
                "verdict": fit.verdict,
                "headroom_bytes": fit.headroom_bytes,
            }
            for fit in plan.fits
        ],
    }


def ledger_document(plan: Plan) -> list[dict[str, Any]]:
    """Every entry of the ledger as plain values."""
    return [_entry(entry) for entry in plan.memory.ledger.entries]


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "component": entry.component,
        "name": entry.name,
        "bytes": entry.bytes,
        "formula": entry.formula,
        "source": entry.source,
        "alive": sorted(entry.alive),
        "place": entry.place,
    }
