"""Optimizer states in managed memory: bitsandbytes' paged ones count on the host, per node."""

from typing import Any

import pytest

from vram_plan.estimator.planner import plan_config
from vram_plan.estimator.resolve import resolve
from vram_plan.profiles.hf_config import from_hf_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
# A block: q and o, k and v, gate, up and down; tables: embeddings and head. Norms are no pages.
MATRICES = 2 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024) + 2 * 300 * 512
NORMS = 5 * 512


def _host_bytes(**options: Any) -> int:
    config = resolve(
        from_hf_config(LLAMA, name="small", source="test"),
        {"method": "full", "seq_len": 64, "attention": "sdpa", **options},
    )
    return plan_config(config).memory.host_bytes


@pytest.mark.parametrize(("optimizer", "width"), [("paged-adamw", 4), ("paged-adamw-8bit", 1)])
def test_two_moments_of_every_matrix(optimizer: str, width: int) -> None:
    assert _host_bytes(optimizer=optimizer) == 2 * width * MATRICES


@pytest.mark.parametrize(("zero", "ranks"), [(0, 1), (1, 2), (2, 2), (3, 2)])
def test_deepspeed_pages_a_flat_partition_or_every_weight(zero: int, ranks: int) -> None:
    """Flat weights (stages 1 to 3) have the norms among them."""
    learning = MATRICES + NORMS if zero else MATRICES
    local = _host_bytes(optimizer="paged-adamw", zero=zero, gpus=2)
    assert local == pytest.approx(2 * (2 * 4 * learning) / ranks, abs=2 * 2 * 512)


def test_every_rank_of_a_node_has_its_own() -> None:
    one = _host_bytes(optimizer="paged-adamw")
    assert _host_bytes(optimizer="paged-adamw", engine="ddp", gpus=8, gpus_per_node=4) == 4 * one
