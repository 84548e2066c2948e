"""The allocator on whole numbers does what the allocator written after PyTorch's does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.estimator import reserved
from vram_plan.estimator.allocator import OutOfMemory, replay
from vram_plan.estimator.allocator.plain import PlainAllocator
from vram_plan.estimator.planner import plan
from vram_plan.estimator.storages import Served, ServedByPool, Storages, Timeline, stretch_of

MIB = 2**20
sizes = st.one_of(
    st.integers(1, 4096), st.integers(1, 2 * MIB), st.integers(1, 80 * MIB), st.just(MIB)
)
actions = st.lists(
    st.tuples(st.booleans(), sizes, st.integers(0, 10**6), st.integers(0, 1)), max_size=120
)
Action = tuple[bool, int, int, int]


def play(storages: Storages, steps: list[Action]) -> None:
    live: list[int] = []
    for frees, size, pick, stream in steps:
        if frees and live:
            storages.give(live.pop(pick % len(live)))
        else:
            live.append(storages.take(size, stream))


def peaks(allocator: PlainAllocator, served: Served, steps: list[Action]) -> tuple[int, int]:
    play(served, steps)
    served.close()
    return allocator.reserved_peak_bytes, served.requested_peak


@settings(max_examples=300, deadline=None)
@given(steps=actions)
def test_any_requests(steps: list[Action]) -> None:
    timeline = Timeline()
    play(timeline, steps)
    stats = replay(timeline.changes, streams=timeline.streams).stats
    wanted = stats.reserved_peak, stats.requested_peak
    for kind in (Served, ServedByPool):
        allocator = PlainAllocator()
        assert peaks(allocator, kind(allocator), steps) == wanted


@settings(max_examples=300, deadline=None)
@given(steps=actions, limit=st.integers(20, 400))
def test_on_a_full_device(steps: list[Action], limit: int) -> None:
    timeline = Timeline()
    play(timeline, steps)
    found = replay(timeline.changes, limit_bytes=limit * MIB, streams=timeline.streams)
    allocator = PlainAllocator(limit * MIB)
    served = Served(allocator)
    if found.outcome == "oom":
        with pytest.raises(OutOfMemory):
            play(served, steps)
    else:
        assert peaks(allocator, served, steps) == (
            found.stats.reserved_peak,
            found.stats.requested_peak,
        )


@settings(max_examples=300, deadline=None)
@given(before=actions, inner=actions)
def test_a_stretch_is_its_changes(before: list[Action], inner: list[Action]) -> None:
    """Whatever was there before it, and whatever of it goes before its pool is asked again."""
    own = Timeline()
    play(own, [(frees, size, pick, 0) for frees, size, pick, _ in inner])
    stretch = stretch_of(own.changes)
    found = []
    for kind in (Served, ServedByPool):
        allocator = PlainAllocator()
        served = kind(allocator)
        play(served, before)
        served.play(stretch, {})
        found.append(peaks(allocator, served, before))
    assert found[0] == found[1]


RUNS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora, checkpoints": {"method": "lora", "checkpointing": "full"},
    "qlora": {"method": "qlora", "checkpointing": "full", "grad_accum": 4},
    "paged out": {"method": "full", "offload": "activations"},
    "lengths": {"method": "lora", "lengths": "300,200,400", "checkpointing": "full"},
    "ddp": {"method": "full", "gpus": 2, "optimizer": "adamw-for-loop"},
    "fsdp1": {"engine": "fsdp1", "gpus": 2, "checkpointing": "full"},
    "fsdp1, lora": {"engine": "fsdp1", "gpus": 4, "method": "lora", "checkpointing": "full"},
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("limit", [None, 1.0, 0.9, 0.5])
def test_whole_runs(name: str, limit: float | None) -> None:
    """Unbounded; and on a device that has all that is reserved without a bound, or less."""
    config = plan("tinyllama-1.1b", seq_len=512, **RUNS[name]).config
    timeline = reserved.run_timeline(config)
    free = replay(timeline.changes, streams=timeline.streams)
    bound = None if limit is None else round(limit * free.stats.reserved_peak)
    found = replay(timeline.changes, limit_bytes=bound, streams=timeline.streams)
    stats = (found if found.outcome == "ok" else free).stats
    wanted = stats.reserved_peak, stats.requested_peak
    assert reserved.peaks(config, seed=0, stage=0, limit=bound) == wanted
