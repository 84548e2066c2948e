"""cuBLAS workspaces beside what a fake device saw.

A fake device multiplies nothing, so no thread asks for its workspace; on the GPU that the
configuration names each does, and keeps it. Plan and dry run take the same entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.overhead import workspace_entries

__all__ = ["with_workspaces"]


def with_workspaces(found: Measurement, config: TrainConfig) -> Measurement:
    """The measurement of a fake device with what each thread of the named GPU keeps."""
    entries = workspace_entries(config)
    if found.device != "fake" or not entries:
        return found
    total = sum(entry.bytes for entry in entries)
    reserved = found.reserved_bytes
    return replace(
        found,
        instants=tuple(_with(instant, entries) for instant in found.instants),
        reserved_bytes=None if reserved is None else reserved + total,
    )


def _with(instant: Instant, entries: list[Entry]) -> Instant:
    components: Mapping[str, int] | None = instant.components
    if components is not None:
        sums = dict(components)
        for entry in entries:
            sums[entry.component] = sums.get(entry.component, 0) + entry.bytes
        components = sums
    total = instant.bytes + sum(entry.bytes for entry in entries)
    return replace(instant, bytes=total, components=components)
