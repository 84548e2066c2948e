"""The allocator under FSDP1: the timeline holds what the plan says, streams keep to themselves."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator import plan, reserved_fsdp
from vram_plan.estimator.allocator import replay
from vram_plan.estimator.overhead import is_modelled
from vram_plan.estimator.reserved import replay_run, run_timeline
from vram_plan.estimator.reserved_fsdp import REDUCE, UNSHARD
from vram_plan.profiles.gpus import find_gpu

MIB = 2**20
RUNS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, checkpoints": {"method": "full", "checkpointing": "full"},
    "pure bf16": {"method": "full", "weights_dtype": "bf16"},
    "grad-op": {"method": "full", "fsdp": "grad-op", "checkpointing": "full"},
    "lora": {"method": "lora", "checkpointing": "full"},
    "lora, liger": {"method": "lora", "loss": "liger", "checkpointing": "full"},
}


def _planned(name: str, **more: Any) -> Any:
    options = {"engine": "fsdp1", "fsdp": "full-shard", "gpus": 2, "seq_len": 1024}
    return plan("tinyllama-1.1b", **{**options, **RUNS[name], **more})


@pytest.mark.parametrize("name", RUNS)
def test_it_allocates_what_the_plan_says(name: str) -> None:
    planned = _planned(name)
    memory, found = planned.memory, replay_run(planned.config)
    seen = found.stats.requested_peak - memory.workspace_bytes
    assert seen == pytest.approx(memory.allocated_bytes, rel=0.02)
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= memory.allocated_bytes


@pytest.mark.parametrize("name", RUNS)
def test_nothing_leaks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _planned(name, seq_len=256).config
    left = []
    for steps in (1, 2, 3):
        monkeypatch.setattr(reserved_fsdp, "STEPS", steps)
        left.append(sum(delta for _, delta in run_timeline(config).changes))
    assert left[0] == left[1] == left[2]


def test_weights_and_shards_have_streams_of_their_own() -> None:
    timeline = run_timeline(_planned("full").config)
    assert set(timeline.streams.values()) == {UNSHARD, REDUCE}
    together = replay(timeline.changes)
    apart = replay(timeline.changes, streams=timeline.streams)
    assert apart.stats.requested_peak == together.stats.requested_peak
    assert apart.reserved_peak_bytes > together.reserved_peak_bytes


def test_a_free_block_serves_its_own_stream_alone() -> None:
    changes = [(0, 64 * MIB), (0, -64 * MIB), (1, 64 * MIB)]
    assert replay(changes).reserved_peak_bytes == 64 * MIB
    assert replay(changes, streams={1: 1}).reserved_peak_bytes == 128 * MIB


@pytest.mark.parametrize("more", [{"offload": "optimizer+params"}, {"lengths": "300,200"}])
def test_what_only_the_device_knows_is_not_replayed(more: dict[str, Any]) -> None:
    planned = _planned("full", **more)
    assert not is_modelled(planned.config)
    assert planned.memory.reserved_bytes is None


def test_a_card_bounds_it() -> None:
    options = {"micro_batch": 8, "gpu": find_gpu("rtx-4090-24gb")}
    free, bound = (_planned("full", **more) for more in ({"micro_batch": 8}, options))
    assert bound.memory.reserved_bytes <= free.memory.reserved_bytes
