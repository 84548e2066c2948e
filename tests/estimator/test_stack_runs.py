"""Published peaks of older stacks: the switches explain them, nothing is fitted.

Rows of foundation-model-stack/fms-acceleration ``scripts/benchmarks/refs`` (exact bytes), of
Lightning-AI/litgpt ``tutorials/resource-tables.md`` and of pytorch/torchtune's README.
"""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator.planner import plan
from vram_plan.profiles.stack import Stack

WORKSPACES = 2 * 8_519_680
"""cuBLAS' own, one for the forward and one for the autograd thread, before Hopper."""
LIGER = (
    "torch=2.4.1,transformers=4.45.2,peft=0.13.2,trl=0.11.4,accelerate=1.0.1,bitsandbytes=0.43.3"
)
MAIN = "torch=2.4.1,transformers=4.48.1,peft=0.13.2,trl=0.13.0,accelerate=1.0.1,bitsandbytes=0.43.3"
ATTENTION = "q_proj,k_proj,v_proj,o_proj"
LORA = {
    "method": "lora",
    "lora_targets": ATTENTION,
    "lora_dropout": 0.1,
    "seq_len": 4096,
    "checkpointing": "full",
}
NF4 = {"quantization": "nf4", "double_quant": True, "kbit_preparation": False, "amp": True}
FUSED = {"fused_kernels": ("rmsnorm", "rope")}
MISTRAL = "mistralai/Mistral-7B-v0.1"

EXACT: list[tuple[str, dict[str, Any], int]] = [
    (MISTRAL, LORA | {"micro_batch": 4, "stack": MAIN}, 26_704_571_904),
    (MISTRAL, LORA | FUSED | {"micro_batch": 8, "stack": MAIN, "loss": "fused-ce"}, 34_280_434_688),
    (MISTRAL, LORA | NF4 | {"micro_batch": 8, "stack": MAIN}, 28_412_178_944),
    (
        MISTRAL,
        LORA | NF4 | {"micro_batch": 8, "stack": MAIN, "kbit_preparation": True},
        37_002_646_016,
    ),
    (
        MISTRAL,
        LORA | FUSED | {"micro_batch": 16, "stack": LIGER, "loss": "liger", "amp": True},
        50_119_454_208,
    ),
    (
        MISTRAL,
        LORA | {"micro_batch": 4, "stack": MAIN, "engine": "fsdp1", "gpus": 2},
        21_959_827_968,
    ),
    (
        "llama-2-70b",
        LORA | NF4 | {"micro_batch": 2, "stack": MAIN, "engine": "fsdp1", "gpus": 2},
        46_685_287_936,
    ),
    (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        LORA | NF4 | {"micro_batch": 8, "stack": MAIN},
        48_770_183_680,
    ),
]


@pytest.mark.parametrize(("model", "options", "measured"), EXACT)
def test_exact_peaks(model: str, options: dict[str, Any], measured: int) -> None:
    predicted = plan(model, **options).memory.allocated_bytes + WORKSPACES
    assert predicted == pytest.approx(measured, rel=0.001)


SANTACODER = "bigcode/gpt_bigcode-santacoder"


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"micro_batch": 8}, 15_193_274_880),
        ({"micro_batch": 8, "loss": "fused-ce"}, 13_582_956_544),
        (
            NF4 | {"micro_batch": 4, "method": "lora", "lora_targets": "c_attn"},
            9_147_162_112,
        ),
    ],
)
def test_a_model_that_keeps_its_cache(options: dict[str, Any], measured: int) -> None:
    """GPTBigCode collects keys and values of checkpointed blocks until its loss is there."""
    common = {"seq_len": 2048, "checkpointing": "full", "stack": MAIN}
    predicted = plan(SANTACODER, **common | options).memory.allocated_bytes + WORKSPACES
    assert predicted == pytest.approx(measured, rel=0.015)


LITGPT = {
    "method": "lora",
    "lora_rank": 8,
    "lora_targets": "q_proj,v_proj",
    "attention": "sdpa",
    "loss": "chunked",
    "grad_accum": 64,
    "stack": "torch=2.1.0,bitsandbytes=0.41.1,loop=litgpt",
}
TORCHTUNE = {
    "micro_batch": 2,
    "seq_len": 4096,
    "attention": "sdpa",
    "stack": "loop=torchtune",
}
ROUNDED: list[tuple[str, dict[str, Any], float]] = [
    ("llama-2-7b", LITGPT | {"micro_batch": 2, "seq_len": 1304}, 29.07e9),
    ("microsoft/phi-1_5", LITGPT | {"micro_batch": 4, "seq_len": 1044}, 10.68e9),
    ("llama-2-7b", LITGPT | {"seq_len": 1304, "quantization": "nf4"}, 14.14e9),
    ("meta-llama/Llama-3.2-3B", TORCHTUNE, 60.0 * 2**30),
    ("meta-llama/Llama-3.2-3B", TORCHTUNE | {"compile": True}, 51.0 * 2**30),
    (
        "meta-llama/Llama-3.2-3B",
        TORCHTUNE | {"compile": True, "loss": "chunked", "checkpointing": "full"},
        24.9 * 2**30,
    ),
]


@pytest.mark.parametrize(("model", "options", "measured"), ROUNDED)
def test_peaks_of_other_loops(model: str, options: dict[str, Any], measured: float) -> None:
    if options.get("quantization"):
        options = options | {"kbit_preparation": False, "optimizer": "paged-adamw"}
    predicted = plan(model, **options).memory.allocated_bytes + WORKSPACES
    assert predicted == pytest.approx(measured, rel=0.03)


def test_the_stack_is_echoed() -> None:
    made = plan(MISTRAL, stack="transformers=4.48.1;torch=2.4.1")
    assert made.config.options()["stack"] == "transformers=4.48.1,torch=2.4.1"
    assert plan(MISTRAL).config.options()["stack"] == ""


def test_an_older_loss_holds_more_logits() -> None:
    def peak(version: str) -> int:
        stack = Stack((("transformers", version),))
        options = LORA | {"micro_batch": 4, "stack": stack}
        return plan(MISTRAL, **options).memory.instants["loss"]

    tokens, vocabulary = 4 * 4096, 32_000
    assert peak("4.48.1") - peak("4.45.2") == pytest.approx(2 * tokens * vocabulary, rel=0.001)


def test_fsdp_keeps_gradients_of_frozen_blocks_under_reentrant_checkpoints() -> None:
    options = LORA | {"micro_batch": 4, "engine": "fsdp1", "gpus": 2, "stack": MAIN}
    old = plan(MISTRAL, **options).memory.instants
    now = plan(MISTRAL, **options | {"stack": ""}).memory.instants
    assert old["backward_first_layer"] > 1.2 * now["backward_first_layer"]


def test_fused_pairs_are_for_quantized_weights() -> None:
    with pytest.raises(ValueError, match="--fused-kernels lora"):
        plan(MISTRAL, **LORA, fused_kernels=("lora",))


def test_a_reentrant_checkpoint_keeps_no_input_of_four_bit_products() -> None:
    # bitsandbytes before 0.43.2 hangs a product's input on its node; under a reentrant checkpoint's
    # first pass there is none, and the second one's are a block's.
    options = LORA | {"method": "qlora", "micro_batch": 4}

    def instants(version: str) -> dict[str, int]:
        stack = f"transformers=4.48.1;bitsandbytes={version}"
        return plan(MISTRAL, **options, stack=stack).memory.instants

    before, now = instants("0.43.1"), instants("0.43.3")
    assert before["forward"] == now["forward"]
    assert before["loss"] == now["loss"]
    # The fp32 norms' outputs are cast for each product; what attention makes is saved anyway.
    inputs = 3 * 4096 + 2 * 4096 + 14_336
    kept = before["backward_last_layer"] - now["backward_last_layer"]
    assert kept == 2 * 4 * 4096 * inputs
