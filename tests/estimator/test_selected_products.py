"""Torchtitan's policy of selective checkpointing: every second matrix product is run again."""

from __future__ import annotations

from typing import Any

from vram_plan.estimator import plan
from vram_plan.estimator.selected import Selected

OPTIONS: dict[str, Any] = {
    "checkpointing": "selective",
    "gpus": 2,
    "engine": "fsdp2",
    "seq_len": 512,
    "micro_batch": 2,
    "weights_dtype": "bf16",
}


def _kept(**more: Any) -> int:
    """Bytes of the blocks when the loss goes back."""
    entries = plan("tinyllama-1.1b", **OPTIONS, **more).memory.ledger.entries
    kept = (e for e in entries if e.name.startswith("kept for the backward pass"))
    return sum(e.bytes for e in kept if "loss_backward" in e.alive)


def test_every_second_product_of_a_block_is_not_kept() -> None:
    model = plan("tinyllama-1.1b", **OPTIONS).model
    head = model.hidden_size // model.num_attention_heads
    # q, k, v, o, gate, up, down: k, o and up are made again.
    widths = model.num_key_value_heads * head + model.hidden_size + model.intermediate_size
    tokens = OPTIONS["seq_len"] * OPTIONS["micro_batch"]
    spared = _kept() - _kept(stack="loop=torchtitan")
    assert spared == model.num_hidden_layers * tokens * widths * 2


def test_both_ways_are_counted_apart() -> None:
    selected = Selected(alternates=True)
    assert [selected.skips_product() for _ in range(4)] == [False, True, False, True]
    selected.replays = True
    assert [selected.skips_product() for _ in range(3)] == [False, True, False]
    assert not any(Selected().skips_product() for _ in range(3))


def test_a_compiler_keeps_no_product_that_nobody_reads() -> None:
    """Nothing saves the last product's output: recomputation ends before it."""
    stack = "loop=torchtitan"
    model = plan("tinyllama-1.1b", **OPTIONS).model
    tokens = OPTIONS["seq_len"] * OPTIONS["micro_batch"]
    fused = ("rope", "rmsnorm", "swiglu")
    spared = _kept(stack=stack, fused_kernels=fused) - _kept(stack=stack, compile=True)
    assert spared == model.num_hidden_layers * tokens * model.hidden_size * 2
