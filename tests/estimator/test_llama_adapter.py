"""LLaMA-Adapter as lit-gpt has it: what it adds, and the peaks that lit-gpt published."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator import plan

LLAMA = "meta-llama/Llama-2-7b-hf"
OPTIONS: dict[str, Any] = {
    "gpu": "a100-40gb-sxm",
    "seq_len": 1304,
    "grad_accum": 128,
    "attention": "sdpa",
    "loss": "chunked",
    "stack": "torch=2.1.0,bitsandbytes=0.41.1,loop=litgpt",
    "amp": False,
}
NF4 = {"quantization": "nf4", "double_quant": False, "kbit_preparation": False}


@pytest.mark.parametrize(
    ("method", "learning"), [("llama-adapter", 1_229_760), ("llama-adapter-v2", 4_279_744)]
)
def test_it_adds_what_its_authors_count(method: str, learning: int) -> None:
    assert plan(LLAMA, method=method, seq_len=64).trainable_parameters == learning


@pytest.mark.parametrize(
    ("options", "published"),
    [
        # Lightning-AI/litgpt @ 26857050f tutorials/resource-tables.md, one A100, peaks in 1e9 bytes
        ({"method": "llama-adapter"}, 19.98),
        ({"method": "llama-adapter", "optimizer": "paged-adamw", **NF4}, 12.68),
        ({"method": "llama-adapter-v2"}, 25.51),
        ({"method": "llama-adapter-v2", "optimizer": "paged-adamw", **NF4}, 18.30),
        ({"method": "lora", "lora_rank": 8, "lora_targets": "q_proj,v_proj", **NF4}, 14.14),
    ],
)
def test_published_peaks(options: dict[str, Any], published: float) -> None:
    found = plan(LLAMA, **OPTIONS, **options).memory.allocated_bytes
    assert found / 1e9 == pytest.approx(published, rel=0.004)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="--method llama-adapter: lit-gpt has no bert models"):
        plan("google-bert/bert-base-uncased", method="llama-adapter", seq_len=64)


def test_tensor_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="--method llama-adapter with --engine megatron: lit-gpt"):
        plan(LLAMA, method="llama-adapter", gpus=2, tp=2, seq_len=64)
