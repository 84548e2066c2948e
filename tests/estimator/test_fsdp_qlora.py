"""Answer.AI's loop: what it holds and how it loads, against its published readings."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator import plan
from vram_plan.estimator.planner import Plan
from vram_plan.estimator.reserved_units import BROADCAST_BYTES, broadcast_buckets
from vram_plan.estimator.sharding.units import Unit
from vram_plan.estimator.tape import Param
from vram_plan.profiles import switches
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.stack import parse_stack

STACK = "transformers=4.38,peft=0.9,bitsandbytes=0.43.0,loop=fsdp_qlora"
LORA: dict[str, Any] = {
    "method": "lora",
    "lora_rank": 64,
    "lora_targets": "q_proj,k_proj,v_proj,gate_proj,up_proj,down_proj",
    "lora_dropout": 0.1,
    "adapter_dtype": "bf16",
    "weights_dtype": "bf16",
    "engine": "fsdp1",
    "fsdp": "full-shard",
    "gpus": 2,
    "gpu": find_gpu("rtx-3090-24gb"),
    "checkpointing": "full",
    "attention": "sdpa",
    "stack": STACK,
}


def _planned(**more: Any) -> Plan:
    return plan("llama-2-7b", **{**LORA, **more})


@pytest.mark.parametrize(
    ("tokens", "allocated", "reserved"), [(512, 8.28, 10.24), (2048, 9.16, 10.22)]
)
def test_published_peaks(tokens: int, allocated: float, reserved: float) -> None:
    """AnswerDotAI/fsdp_qlora @ 05ed9f2a ``benchmarks_03_2024.md``: LoRA, a batch of one, GiB.

    Loading decides what is reserved: it is the same at both lengths.
    """
    memory = _planned(seq_len=tokens).memory
    assert memory.allocated_bytes / 2**30 == pytest.approx(allocated, rel=0.02)
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes / 2**30 == pytest.approx(reserved, rel=0.01)


def test_it_holds_the_logits_until_the_step_is_over() -> None:
    batch, tokens = 4, 2048
    ours, others = (
        _planned(micro_batch=batch, seq_len=tokens, stack=stack).memory.allocated_bytes
        for stack in (STACK, STACK.replace("fsdp_qlora", "torchtune"))
    )
    assert ours - others == batch * tokens * 32_000 * 4


def test_the_block_before_is_fetched_at_the_first_adapter() -> None:
    """A checkpoint inside FSDP's unit leaves the backward prefetch alone."""
    entries = _planned(seq_len=512).memory.ledger.entries
    ahead = [one.name for one in entries if "ahead: the block before" in one.name]
    assert ahead
    grad_op = _planned(seq_len=512, fsdp="grad-op").memory.ledger.entries
    assert not any("ahead" in one.name for one in grad_op)


def test_switches() -> None:
    loop = parse_stack(STACK)
    assert switches.reentrant_checkpoints(loop)
    for switch in (switches.checkpoints_inside_units, switches.keeps_outputs):
        assert switch(loop)
        assert not switch(parse_stack(""))
    assert switches.broadcasts_states(loop)
    assert not switches.broadcasts_states(parse_stack("loop=llm-foundry"))


def _param(megabytes: int) -> Param:
    numel = megabytes * 2**20 // 2
    return Param(name="w", numel=numel, itemsize=2, trainable=False, shape=(numel,))


def test_broadcast_buckets() -> None:
    """A bucket is closed by the weight that fills it; the two largest are there together."""
    config = _planned(seq_len=512).config
    sizes = [200, 100, 240, 30, 10]
    unit = Unit(name="block", params=tuple(_param(size) for size in sizes))
    found = [nbytes / 2**20 for nbytes in broadcast_buckets(config, unit)]
    assert found == [270, 300]
    assert BROADCAST_BYTES == 250 * 2**20
