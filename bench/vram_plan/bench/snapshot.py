"""A trace in PyTorch's memory-snapshot format: open it at https://pytorch.org/memory_viz.

The format is that of ``torch.cuda.memory._snapshot()`` (torch 2.13.0 ``torch/cuda/memory.py``,
``torch/csrc/cuda/memory_snapshot.cpp``): segments with their blocks at the end, and every action of
the allocator before. Addresses are those of the allocator model; times count events, since a trace
measures none. A frame names the operator, the module that ran it, the phase and the component.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vram_plan.bench.allocator import (
    AllocatorSettings,
    CachingAllocator,
    OutOfMemory,
    Replayer,
    whole_timeline,
)

if TYPE_CHECKING:
    from vram_plan.bench.trace.timeline import Block as TracedBlock
    from vram_plan.bench.trace.timeline import Event, Trace
    from vram_plan.estimator.allocator.blocks import Block

__all__ = ["snapshot", "write_snapshot"]

Frames = list[dict[str, Any]]
_POOL = (0, 0)


def write_snapshot(
    path: Path,
    trace: Trace,
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
) -> None:
    """Write what ``torch.cuda.memory._dump_snapshot`` would have written at the end of the run."""
    with path.open("wb") as file:
        pickle.dump(snapshot(trace, settings, limit_bytes), file)


def snapshot(
    trace: Trace,
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """The snapshot of a trace taken with ``TraceConfig(history=True)``.

    Args:
        trace: the run.
        settings: the allocator's; PyTorch's defaults when None.
        limit_bytes: what the device can hand out; the snapshot ends where a request fails.
    """
    return snapshot_of(whole_timeline(trace), settings or AllocatorSettings(), limit_bytes)


def snapshot_of(
    events: Sequence[Event], settings: AllocatorSettings, limit_bytes: int | None = None
) -> dict[str, Any]:
    """The snapshot of some events, the first of a run among them."""
    writer = _Writer(settings, limit_bytes)
    for event in events:
        if not writer.follow(event):
            break
    return {
        "segments": writer.segments(),
        "device_traces": [writer.actions],
        "allocator_settings": _settings(settings),
        "external_annotations": writer.annotations(),
    }


class _Writer:
    """Replays events and notes what the allocator does, with the frames of each."""

    def __init__(self, settings: AllocatorSettings, limit_bytes: int | None) -> None:
        self.actions: list[dict[str, Any]] = []
        self.phases: list[tuple[int, str]] = []
        self.now: Frames = []
        self.frames: dict[int, Frames] = {}
        self.known: dict[tuple[str, ...], Frames] = {}
        self.allocator = CachingAllocator(settings, limit_bytes=limit_bytes, observer=self.note)
        self.replayer = Replayer(self.allocator)

    def follow(self, event: Event) -> bool:
        """Replay one event; False where the device is full."""
        if event.delta == 0:
            self.phases.append((len(self.actions), event.phase))
            return True
        self.now = self.frames_of(event.block)
        try:
            block = self.replayer.change(event.block.number, event.delta)
        except OutOfMemory:
            return False
        if block is not None:
            self.frames[block.address] = self.now
        return True

    def note(self, action: str, address: int, size: int, stream: int) -> None:
        """One action of the allocator."""
        place = "device_free" if action == "oom" else "addr"
        self.actions.append(
            {
                "action": action,
                place: address,
                "size": size,
                "stream": stream,
                "time_us": len(self.actions),
                "frames": self.now,
                "compile_context": "N/A",
                "pool_id": _POOL,
            }
        )

    def frames_of(self, block: TracedBlock) -> Frames:
        """Where a block came from, in the form of a stack of calls."""
        shape = "×".join(map(str, block.shape)) or "scalar"
        key = (block.op, block.module, block.phase, block.component, shape, block.dtype)
        frames = self.known.get(key)
        if frames is None:
            names = (
                (f"{block.op} [{shape} {block.dtype}]", block.module or "-"),
                (block.component or "-", "component"),
                (block.phase, "phase"),
            )
            frames = [{"name": name, "filename": file, "line": 0} for name, file in names]
            self.known[key] = frames
        return frames

    def segments(self) -> list[dict[str, Any]]:
        """The segments as they are now, by address (``DeviceCachingAllocator::snapshot``)."""
        heads = [
            block
            for block in self.allocator.blocks()
            if block.prev is None or not block.prev.mapped
        ]
        return [self._segment(head) for head in sorted(heads, key=lambda head: head.address)]

    def _segment(self, head: Block) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = []
        block: Block | None = head
        while block is not None and block.mapped:
            blocks.append(
                {
                    "address": block.address,
                    "size": block.size,
                    "requested_size": block.requested,
                    "state": "active_allocated" if block.allocated else "inactive",
                    "frames": self.frames.get(block.address, []) if block.allocated else [],
                }
            )
            block = block.next
        active = [entry for entry in blocks if entry["state"] == "active_allocated"]
        used = sum(entry["size"] for entry in active)
        return {
            "device": 0,
            "address": head.address,
            "total_size": sum(entry["size"] for entry in blocks),
            "allocated_size": used,
            "active_size": used,
            "requested_size": sum(entry["requested_size"] for entry in active),
            "stream": head.stream,
            "segment_type": "small" if head.pool.is_small else "large",
            "segment_pool_id": _POOL,
            "is_expandable": head.segment is not None,
            "frames": [],
            "blocks": blocks,
        }

    def annotations(self) -> list[dict[str, Any]]:
        """Beginning and end of every phase, as ``torch.profiler.record_function`` leaves them."""
        found = []
        ends = [start for start, _ in self.phases[1:]] + [len(self.actions)]
        for (start, name), end in zip(self.phases, ends, strict=True):
            for stage, time in (("START", start), ("END", end)):
                found.append({"name": name, "stage": stage, "device": 0, "time_us": time})
        return found


def _settings(settings: AllocatorSettings) -> dict[str, Any]:
    unlimited = 2**63 - 1
    return {
        "PYTORCH_CUDA_ALLOC_CONF": "",
        "max_split_size": settings.max_split_bytes or unlimited,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "expandable_segments": settings.expandable_segments,
    }
