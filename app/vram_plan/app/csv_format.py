"""The plan as CSV: a row for every component at the peak, or for every ledger entry."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from vram_plan.app.speed_text import cost_document, step_document
from vram_plan.estimator.planner import Plan


def show(plan: Plan, *, explain: bool) -> None:
    """Print the rows."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if explain:
        writer.writerow(("component", "name", "bytes", "place", "alive", "formula", "source"))
        for entry in plan.memory.ledger.entries:
            alive = ";".join(sorted(entry.alive))
            writer.writerow(
                (
                    entry.component,
                    entry.name,
                    entry.bytes,
                    entry.place,
                    alive,
                    entry.formula,
                    entry.source,
                )
            )
        return
    memory = plan.memory
    writer.writerow(("quantity", "value"))
    for name, nbytes in memory.components.items():
        writer.writerow((name, nbytes))
    for name in (
        "allocated_bytes",
        "required_bytes",
        "model_states_bytes",
        "host_bytes",
        "nvme_bytes",
    ):
        writer.writerow((name, getattr(memory, name)))
    for instant, nbytes in memory.instants.items():
        writer.writerow((f"instant:{instant}", nbytes))
    for name, document in (("step", step_document(plan)), ("cost", cost_document(plan))):
        for quantity, value in _flat(name, document or {}):
            writer.writerow((quantity, value))


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of a document by path, ``step:parts:attention``; what is not known is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}:{key}", value)
        elif isinstance(value, (int, float)):
            yield f"{prefix}:{key}", value
