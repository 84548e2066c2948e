"""DeepSpeed's pipeline engine: what the last stage keeps, and the pairs it talks in."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator import plan
from vram_plan.estimator.overhead import NCCL_PAIR_BYTES
from vram_plan.estimator.planner import Plan, plan_config

NAME = "logits of the micro-batch before, in the engine's other buffer"
OPTIONS: dict[str, Any] = {
    "engine": "megatron-deepspeed",
    "zero": 1,
    "gpus": 8,
    "pp": 4,
    "micro_batch": 2,
    "seq_len": 512,
    "grad_accum": 8,
    "precision": "fp16",
}


def _planned(**changes: Any) -> Plan:
    return plan("gpt2-xl", **{**OPTIONS, **changes})


def _waiting(found: Plan, stage: int) -> int:
    ledger = plan_config(found.config, stage=stage).memory.ledger
    return sum(entry.bytes for entry in ledger.entries if entry.name == NAME)


def test_the_last_stage_keeps_the_logits_of_the_micro_batch_before() -> None:
    rows = -(-50257 // 128) * 128
    assert _waiting(_planned(), -1) == 2 * 512 * rows * 2
    assert _waiting(_planned(), 0) == 0


def test_one_micro_batch_leaves_no_other_buffer() -> None:
    assert _waiting(_planned(grad_accum=1), -1) == 0


def test_megatrons_own_pipeline_has_no_such_buffers() -> None:
    assert _waiting(_planned(engine="megatron"), -1) == 0


@pytest.mark.parametrize(("stages", "neighbours"), [(1, 0), (2, 1), (4, 2), (8, 2)])
def test_neighbours_are_groups_of_two(stages: int, neighbours: int) -> None:
    ours = _planned(pp=stages).memory.overhead_bytes
    megatron = _planned(pp=stages, engine="megatron").memory.overhead_bytes
    lone = (
        _planned(pp=1).memory.overhead_bytes
        - _planned(pp=1, engine="megatron").memory.overhead_bytes
    )
    assert ours - megatron - lone == neighbours * NCCL_PAIR_BYTES
