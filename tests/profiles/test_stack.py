"""Library versions and what they switch."""

from __future__ import annotations

import pytest

from vram_plan.profiles import switches
from vram_plan.profiles.stack import REFERENCE, Stack, parse_stack, version_number


def test_what_is_not_given_is_the_reference() -> None:
    stack = parse_stack("torch=2.4.1;transformers=4.48.1")
    assert stack.version("torch") == "2.4.1"
    assert stack.version("peft") == REFERENCE["peft"]
    assert str(stack) == "torch=2.4.1,transformers=4.48.1"
    assert parse_stack(str(stack)) == stack
    assert parse_stack("") == Stack()


def test_versions_are_numbers() -> None:
    assert version_number("4.9") < version_number("4.10")
    assert version_number("2.13.0+cu130") == version_number("2.13")
    assert version_number("0.41.3.post2") == (0, 41, 3)
    assert parse_stack("transformers=4.9").since("transformers", "4.10") is False
    assert Stack().since("trl", "1.0"), "a library without a version is the newest"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torch", "give LIBRARY=VERSION"),
        ("trnsformers=4.48", "did you mean transformers"),
        ("torch=", "a version is missing"),
        ("loop=lightning", "choose from transformers"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_stack(text)


def test_a_version_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="no version"):
        parse_stack("transformers=main").since("transformers", "4.48")


def test_the_loop() -> None:
    assert Stack().loop == "transformers"
    assert parse_stack("litgpt=0.5.4,torch=2.1").loop == "litgpt"
    assert parse_stack("torch=2.1;loop=hf-trainer").loop == "transformers"
    assert parse_stack("loop=fsdp_qlora").loop == "fsdp-qlora"


@pytest.mark.parametrize(
    ("version", "llama", "gpt2"),
    [
        ("4.45.2", "rebound", "narrow"),
        ("4.46.0", "shifted", "narrow"),
        ("4.48.3", "shifted", "narrow"),
        ("4.49.0", "padded", "padded"),
        ("5.23.0", "padded", "padded"),
    ],
)
def test_loss_by_version(version: str, llama: str, gpt2: str) -> None:
    stack = parse_stack(f"transformers={version}")
    assert switches.loss_code(stack, "llama") == llama
    assert switches.loss_code(stack, "gpt2") == gpt2


def test_the_reference_changes_nothing() -> None:
    """Every switch of the default stack is what the estimator was traced with."""
    now = Stack()
    assert switches.loss_code(now, "gpt2") == "padded"
    assert switches.stacks_experts(now)
    assert switches.upcasts_shards(now, "fsdp1")
    assert switches.upcasts_shards(now, "fsdp2")
    assert switches.adapter_dtype(now, "bf16", quantized=False) == "fp32"
    assert switches.lora_dropout(now) == 0.0
    assert not switches.repeats_heads(now, "mistral", "flash")
    off = (
        switches.keeps_four_bit_input,
        switches.recasts_four_bit,
        switches.reentrant_checkpoints,
        switches.narrows_tables,
        switches.mixes_units,
        switches.shards_gptq,
        switches.alternates_products,
        switches.fuses_adamw,
        switches.fuses_all,
    )
    assert not any(switch(now) for switch in off)


def test_switches_by_version() -> None:
    old = parse_stack("transformers=4.45.2,peft=0.11.1,bitsandbytes=0.41.1,accelerate=1.13")
    assert switches.reentrant_checkpoints(old)
    assert switches.reentrant_checkpoints(parse_stack("transformers=4.38,loop=ms-swift"))
    assert not switches.reentrant_checkpoints(parse_stack("transformers=4.36,loop=ms-swift"))
    assert switches.repeats_heads(old, "mistral", "flash")
    assert not switches.repeats_heads(old, "llama", "flash")
    assert switches.repeats_heads(old, "llama", "sdpa")
    assert switches.keeps_four_bit_input(old)
    assert switches.adapter_dtype(old, "bf16", quantized=False) == "bf16"
    assert switches.adapter_dtype(old, "bf16", quantized=True) == "fp32"
    assert not switches.upcasts_shards(old, "fsdp2")
    assert switches.upcasts_shards(old, "fsdp1")
    assert not switches.upcasts_shards(parse_stack("accelerate=0.29"), "fsdp1")
