"""From a trace's events to the requests that the allocator sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vram_plan.estimator.allocator import AllocatorSettings, Change, Replay
from vram_plan.estimator.allocator import replay as replay_changes

if TYPE_CHECKING:
    from vram_plan.bench.trace.timeline import Event, Trace

__all__ = ["changes_of", "replay", "replay_trace", "whole_timeline"]


def whole_timeline(trace: Trace) -> list[Event]:
    """Every event of a run: loading, the first step, in which states are born, and the second.

    Raises:
        ValueError: the trace kept its last step alone.
    """
    if not trace.history and trace.start_blocks:
        raise ValueError(
            "the trace has no history, so nobody knows where its first blocks lie: trace with "
            "TraceConfig(history=True)"
        )
    return [*trace.history, *trace.events]


def changes_of(events: Iterable[Event]) -> Iterator[Change]:
    """The storages' numbers with their changes of size; phases are left out."""
    return ((event.block.number, event.delta) for event in events if event.delta)


def replay(
    events: Iterable[Event],
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
) -> Replay:
    """Run events through the allocator.

    Args:
        events: of a trace, from the first on (``whole_timeline``).
        settings: PyTorch's defaults when None.
        limit_bytes: what the device can hand out to the process; None: all it asks for.
    """
    return replay_changes(changes_of(events), settings, limit_bytes)


def replay_trace(
    trace: Trace,
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
) -> Replay:
    """Run a whole trace, taken with ``TraceConfig(history=True)``, through the allocator."""
    return replay(whole_timeline(trace), settings, limit_bytes)
