"""The allocator under FSDP2: the timeline holds what the plan says, streams keep to themselves."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator import plan, reserved_frame
from vram_plan.estimator.allocator import replay
from vram_plan.estimator.overhead import is_modelled
from vram_plan.estimator.planner import Plan
from vram_plan.estimator.reserved import replay_run, run_timeline
from vram_plan.estimator.reserved_fsdp2 import COPY_IN, REDUCE
from vram_plan.profiles.gpus import find_gpu

RUNS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, checkpoints": {"method": "full", "checkpointing": "full"},
    "selective": {"method": "full", "checkpointing": "selective"},
    "pure bf16": {"method": "full", "weights_dtype": "bf16"},
    "grad-op": {"method": "full", "fsdp": "grad-op", "checkpointing": "full"},
    "lora": {"method": "lora", "checkpointing": "full"},
    "accumulated": {"method": "full", "grad_accum": 4},
}


def _planned(name: str, model: str = "tinyllama-1.1b", **more: Any) -> Plan:
    options = {"engine": "fsdp2", "fsdp": "full-shard", "gpus": 2, "seq_len": 1024}
    return plan(model, **{**options, **RUNS[name], **more})


@pytest.mark.parametrize("name", RUNS)
def test_it_allocates_what_the_plan_says(name: str) -> None:
    planned = _planned(name)
    memory, found = planned.memory, replay_run(planned.config)
    seen = found.stats.requested_peak - memory.workspace_bytes
    assert seen == pytest.approx(memory.allocated_bytes, rel=0.02)
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= memory.allocated_bytes


@pytest.mark.parametrize("model", ["t5-base", "gpt2", "bert-base-uncased", "olmoe-1b-7b"])
def test_other_chains(model: str) -> None:
    more: dict[str, Any] = {"seq_len": 256}
    if model == "t5-base":
        more["source_len"] = 256
    planned = _planned("full", model, **more)
    found = replay_run(planned.config)
    seen = found.stats.requested_peak - planned.memory.workspace_bytes
    assert seen == pytest.approx(planned.memory.allocated_bytes, rel=0.02)


@pytest.mark.parametrize("name", RUNS)
def test_nothing_leaks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _planned(name, seq_len=256).config
    left = []
    for steps in (1, 2, 3):
        monkeypatch.setattr(reserved_frame, "STEPS", steps)
        left.append(sum(delta for _, delta in run_timeline(config).changes))
    assert left[0] == left[1] == left[2]


def test_buffers_and_shards_have_streams_of_their_own() -> None:
    timeline = run_timeline(_planned("full").config)
    assert set(timeline.streams.values()) == {COPY_IN, REDUCE}
    together = replay(timeline.changes)
    apart = replay(timeline.changes, streams=timeline.streams)
    assert apart.stats.requested_peak == together.stats.requested_peak
    assert apart.reserved_peak_bytes > together.reserved_peak_bytes


@pytest.mark.parametrize(
    "more", [{"lengths": "300,200"}, {"compile": True}, {"cp": 2}, {"tp": 2}, {"method": "qlora"}]
)
def test_what_only_the_device_knows_is_not_replayed(more: dict[str, Any]) -> None:
    planned = _planned("full", **more)
    assert not is_modelled(planned.config)
    assert planned.memory.reserved_bytes is None


@pytest.mark.parametrize(("gpus", "measured"), [(8, 82.4), (128, 67.0)])
def test_published_runs(gpus: int, measured: float) -> None:
    """pytorch/torchtitan @ b5bcd76c6 ``benchmarks/llama3_h100_202412_torchtitan.md``, GiB."""
    memory = plan(
        "meta-llama/Llama-3.1-8B",
        engine="fsdp2",
        fsdp="full-shard",
        gpus=gpus,
        gpu=find_gpu("h100-96gb-sxm"),
        weights_dtype="fp32",
        micro_batch=2,
        seq_len=8192,
        checkpointing="selective",
        attention="sdpa",
        optimizer="adamw-fused",
        stack="loop=torchtitan",
    ).memory
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes / 2**30 == pytest.approx(measured, rel=0.01)
