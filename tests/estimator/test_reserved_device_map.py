"""The allocator where blocks are spread over GPUs: a replay for each, the fullest one counts."""

from __future__ import annotations

from typing import Any

from vram_plan.estimator import plan
from vram_plan.estimator.allocator import replay
from vram_plan.estimator.overhead import rank_groups
from vram_plan.estimator.reserved import run_timeline

OPTIONS: dict[str, Any] = {"engine": "device-map", "gpus": 2, "method": "lora", "seq_len": 1024}


def test_the_fullest_gpu_is_the_plans() -> None:
    planned = plan("tinyllama-1.1b", checkpointing="full", **OPTIONS)
    memory, found = (
        planned.memory,
        [replay(run_timeline(planned.config, stage=stage).changes) for stage in (0, 1)],
    )
    seen = max(one.stats.requested_peak for one in found) - memory.workspace_bytes
    assert abs(seen / memory.allocated_bytes - 1) < 0.02
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= max(one.reserved_peak_bytes for one in found)


def test_lengths_that_differ_leave_more_in_the_cache() -> None:
    fixed, varied = (
        plan("tinyllama-1.1b", checkpointing="full", lengths=lengths, **OPTIONS).memory
        for lengths in ("fixed", "700,400")
    )
    assert fixed.reserved_bytes is not None
    assert varied.reserved_bytes is not None
    assert varied.reserved_bytes > fixed.reserved_bytes
    assert varied.allocated_bytes == fixed.allocated_bytes


def test_one_process_has_no_communicator_for_its_gpus() -> None:
    assert rank_groups(plan("tinyllama-1.1b", **OPTIONS).config) == []
    copies = plan("tinyllama-1.1b", **OPTIONS | {"gpus": 4, "pp": 2}).config
    assert rank_groups(copies) == [2], "two processes, each with two GPUs"
