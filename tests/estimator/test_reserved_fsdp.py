"""The allocator under FSDP1: the timeline holds what the plan says, streams keep to themselves."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator import plan, reserved_frame
from vram_plan.estimator.allocator import replay
from vram_plan.estimator.overhead import is_modelled
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.reserved import replay_run, run_timeline
from vram_plan.estimator.reserved_fsdp import FETCH, REDUCE, UNSHARD
from vram_plan.estimator.reserved_units import unit_sizes
from vram_plan.estimator.sharding.units import Unit, unit_of
from vram_plan.profiles.gpus import find_gpu

MIB = 2**20
RUNS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, checkpoints": {"method": "full", "checkpointing": "full"},
    "pure bf16": {"method": "full", "weights_dtype": "bf16"},
    "grad-op": {"method": "full", "fsdp": "grad-op", "checkpointing": "full"},
    "lora": {"method": "lora", "checkpointing": "full"},
    "lora, liger": {"method": "lora", "loss": "liger", "checkpointing": "full"},
    "accumulated": {"method": "full", "checkpointing": "full", "grad_accum": 4},
    "lora, accumulated": {"method": "lora", "checkpointing": "full", "grad_accum": 4},
    "full, on the host": {"method": "full", "offload": "optimizer+params"},
    "qlora, on the host": {
        "method": "qlora",
        "checkpointing": "full",
        "offload": "optimizer+params",
        "stack": "loop=fsdp_qlora",
    },
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
        monkeypatch.setattr(reserved_frame, "STEPS", steps)
        left.append(sum(delta for _, delta in run_timeline(config).changes))
    assert left[0] == left[1] == left[2]


def test_weights_and_shards_have_streams_of_their_own() -> None:
    timeline = run_timeline(_planned("pure bf16").config)
    assert set(timeline.streams.values()) == {UNSHARD, REDUCE}
    cast = run_timeline(_planned("full").config)  # shards in fp32, gathered in bf16
    assert set(cast.streams.values()) == {UNSHARD, REDUCE, FETCH}
    together = replay(timeline.changes)
    apart = replay(timeline.changes, streams=timeline.streams)
    assert apart.stats.requested_peak == together.stats.requested_peak
    assert apart.reserved_peak_bytes > together.reserved_peak_bytes


def test_shards_on_the_host_pass_through_a_stream_of_their_own() -> None:
    """And nothing of them stays: neither weights, nor gradients, nor states."""
    timeline = run_timeline(_planned("full, on the host").config)
    assert set(timeline.streams.values()) == {UNSHARD, REDUCE, FETCH}
    left = dict.fromkeys(timeline.streams.values(), 0)
    for number, delta in timeline.changes:
        if number in timeline.streams:
            left[timeline.streams[number]] += delta
    assert not any(left.values())


def test_codes_go_to_the_host_and_scales_stay() -> None:
    here, there = (
        _planned("qlora, on the host", offload=offload).memory
        for offload in ("none", "optimizer+params")
    )
    packed = [one for one in there.ledger.entries if "nf4" in one.name]
    assert {one.place for one in packed} == {"device", "host"}
    (whole,) = (one for one in here.ledger.entries if "nf4" in one.name)
    on_host = sum(one.bytes for one in packed if one.place == "host") // 2  # of two ranks
    assert sum(one.bytes for one in packed if one.place == "device") + on_host == whole.bytes


def test_codes_are_no_wider_on_the_host_than_on_their_way() -> None:
    config = _planned("qlora, on the host").config
    links = run_passes(config, keeps_gradients=True).links
    (block,) = (unit_of(link, 1.0) for link in links if link.segment.kind == "layer")
    base = Unit(name="block", params=tuple(p for p in block.params if not p.added))
    sizes = unit_sizes(config, block, base, ranks=2)
    assert sizes.held == sizes.whole


def test_a_free_block_serves_its_own_stream_alone() -> None:
    changes = [(0, 64 * MIB), (0, -64 * MIB), (1, 64 * MIB)]
    assert replay(changes).reserved_peak_bytes == 64 * MIB
    assert replay(changes, streams={1: 1}).reserved_peak_bytes == 128 * MIB


def test_what_only_the_device_knows_is_not_replayed() -> None:
    planned = _planned("full", lengths="300,200")
    assert not is_modelled(planned.config)
    assert planned.memory.reserved_bytes is None


def test_a_card_bounds_it() -> None:
    options = {"micro_batch": 8, "gpu": find_gpu("rtx-4090-24gb")}
    free, bound = (_planned("full", **more) for more in ({"micro_batch": 8}, options))
    assert bound.memory.reserved_bytes <= free.memory.reserved_bytes


def test_a_run_that_fits_reserves_no_more_than_the_card_has() -> None:
    """Though the model of the allocator may not find the places for all of it."""
    card = find_gpu("rtx-4090-24gb")
    run: dict[str, Any] = {"gpu": card, "micro_batch": 12, "seq_len": 2048, "lora_rank": 64}
    planned = plan(
        "llama-2-7b", engine="fsdp1", fsdp="full-shard", gpus=2, **run, **RUNS["qlora, on the host"]
    )
    memory = planned.memory
    assert memory.allocated_bytes < card.usable_bytes
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes <= card.usable_bytes
