"""The plan as CSV: a row for every component at the peak, or for every ledger entry."""

from __future__ import annotations

import csv
import sys

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
    writer.writerow(("quantity", "bytes"))
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
