"""Laws that hold for any sequence of requests, speed, and PyTorch's own counters on a GPU."""

import os
import random
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.estimator.allocator import (
    AllocatorSettings,
    CachingAllocator,
    OutOfMemory,
    replay,
)
from vram_plan.estimator.allocator.blocks import Block

MIB = 2**20
SETTINGS = [
    AllocatorSettings(),
    AllocatorSettings(expandable_segments=True),
    AllocatorSettings(max_split_bytes=32 * MIB),
    AllocatorSettings(roundup_power2_divisions=(8,) * 16),
    AllocatorSettings(garbage_collection_threshold=0.6, memory_fraction=0.9),
]
sizes = st.one_of(
    st.integers(1, 4096), st.integers(1, 2 * MIB), st.integers(1, 80 * MIB), st.just(MIB)
)
actions = st.lists(
    st.tuples(st.integers(0, 3), sizes, st.integers(0, 10**6), st.integers(0, 1)), max_size=60
)


def run(
    found: CachingAllocator, steps: list[tuple[int, int, int, int]], *, check: bool
) -> tuple[list[Block], list[int]]:
    """Requests (and one free in four, one emptying in many); the blocks left, and addresses."""
    live: list[Block] = []
    addresses: list[int] = []
    for kind, size, pick, stream in steps:
        if kind == 0 and live:
            found.free(live.pop(pick % len(live)))
        elif kind == 1 and pick % 7 == 0:
            found.empty_cache()
        else:
            try:
                live.append(found.malloc(size, stream))
            except OutOfMemory:
                continue
            addresses.append(live[-1].address)
        if check:
            check_all(found, live)
    return live, addresses


def check_all(found: CachingAllocator, live: list[Block]) -> None:
    stats = found.stats
    ends = 0
    for block in sorted(found.blocks(), key=lambda b: b.address):
        assert block.address >= ends, "blocks overlap"
        ends = block.address + block.size
        assert block.size % 512 == 0
        assert not (block.next and not block.allocated and not block.next.allocated) or (
            block.mapped != block.next.mapped
        ), "free neighbours are merged"
    assert stats.allocated == sum(block.size for block in live)
    assert stats.requested == sum(block.requested for block in live)
    assert stats.allocations == len(live)
    assert stats.reserved == sum(block.size for block in found.blocks())
    assert stats.reserved >= stats.allocated >= stats.requested
    free = [b for b in found.blocks() if not b.allocated and b.is_split and b.segment is None]
    assert stats.inactive_split == sum(block.size for block in free)
    assert stats.inactive_splits == len(free)
    if found.limit_bytes is not None:
        assert stats.reserved <= found.limit_bytes


@pytest.mark.parametrize("chosen", SETTINGS)
@pytest.mark.parametrize("limit", [None, 160 * MIB])
@settings(max_examples=40, deadline=None)
@given(steps=actions)
def test_laws(
    chosen: AllocatorSettings, limit: int | None, steps: list[tuple[int, int, int, int]]
) -> None:
    found = CachingAllocator(chosen, limit_bytes=limit)
    live, addresses = run(found, steps, check=True)
    again = CachingAllocator(chosen, limit_bytes=limit)
    assert run(again, steps, check=False)[1] == addresses, "the same sequence, the same places"
    assert again.stats == found.stats
    random.Random(0).shuffle(live)
    for block in live:
        found.free(block)
    found.empty_cache()
    assert found.stats.reserved == found.stats.allocated == found.stats.inactive_split == 0
    assert list(found.blocks()) == []
    assert not found.large.unmapped_blocks
    assert not found.small.unmapped_blocks


@settings(max_examples=30, deadline=None)
@given(steps=actions)
def test_a_limit_that_suffices_changes_nothing(steps: list[tuple[int, int, int, int]]) -> None:
    free = CachingAllocator()
    run(free, steps, check=False)
    bound = CachingAllocator(limit_bytes=free.stats.reserved_peak)
    run(bound, steps, check=False)
    assert bound.stats == free.stats


def sequence(count: int, seed: int) -> list[tuple[int, int]]:
    """Changes of storages as a step makes them: small and large, half of them short-lived."""
    chance = random.Random(seed)
    changes: list[tuple[int, int]] = []
    live: list[tuple[int, int]] = []
    for number in range(count):
        if live and chance.random() < 0.5:
            storage, size = live.pop(chance.randrange(len(live)))
            changes.append((storage, -size))
        else:
            size = int(2 ** chance.uniform(5, 26))
            live.append((number, size))
            changes.append((number, size))
    return changes


@pytest.mark.parametrize("expandable", [False, True])
def test_speed(expandable: bool) -> None:
    """100,000 changes within a second of the processor's time."""
    changes = sequence(100_000, seed=1)
    start = time.process_time()
    result = replay(changes, AllocatorSettings(expandable_segments=expandable))
    took = time.process_time() - start
    assert result.outcome == "ok"
    assert took < 1.5, f"{took:.2f} s"


_ON_A_GPU = """
import json, sys
import torch
changes = json.loads(sys.stdin.read())
torch.cuda.init()
held, seen = {}, []
for storage, delta in changes:
    if delta > 0:
        held[storage] = torch.empty(delta, dtype=torch.uint8, device="cuda")
    else:
        del held[storage]
    stats = torch.cuda.memory_stats()
    names = ("allocated_bytes", "reserved_bytes", "inactive_split_bytes", "requested_bytes")
    seen.append([stats[name + ".all.current"] for name in names])
print(json.dumps({"seen": seen, "end": torch.cuda.memory_stats()}))
"""


@pytest.mark.gpu
@pytest.mark.parametrize(
    "conf",
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:32",
        "roundup_power2_divisions:8",
        "large_segment_size_mb:64",
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_equals_torch(conf: str, seed: int) -> None:
    """The counters of ``torch.cuda.memory_stats`` after every single request."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    import json

    changes = sequence(3000, seed)
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": conf}
    output = subprocess.run(
        [sys.executable, "-c", _ON_A_GPU],
        input=json.dumps(changes),
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    told = json.loads(output)
    found = CachingAllocator(AllocatorSettings.parse(conf))
    blocks: dict[int, Block] = {}
    for (storage, delta), wanted in zip(changes, told["seen"], strict=True):
        if delta > 0:
            blocks[storage] = found.malloc(delta)
        else:
            found.free(blocks.pop(storage))
        stats = found.stats
        got = [stats.allocated, stats.reserved, stats.inactive_split, stats.requested]
        assert got == wanted, (storage, delta)
    ours = found.stats.as_torch()
    assert ours == {name: told["end"][name] for name in ours}
