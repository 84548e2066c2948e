"""Modules trained whole beside low-rank pairs, and a classifier in place of the head."""

from dataclasses import replace

import pytest

from vram_plan.estimator import plan
from vram_plan.profiles.models import resolve_model

LORA = {"method": "lora", "seq_len": 256, "checkpointing": "full"}


def test_saved_modules_learn_and_their_originals_stay() -> None:
    without = plan("llama-2-7b", **LORA)
    found = plan("llama-2-7b", **LORA, modules_to_save="embeddings,lm_head")
    tables = 2 * 32000 * 4096
    assert found.trainable_parameters == without.trainable_parameters + tables
    assert found.parameters == without.parameters
    kept = next(e for e in found.memory.ledger.entries if e.name.startswith("originals"))
    assert kept.bytes == 2 * tables
    # weights, a gradient and two moments, all in 16 bits
    grown = found.memory.model_states_bytes - without.memory.model_states_bytes
    assert grown == pytest.approx((2 + 2 + 4) * tables, rel=0.01)


def test_one_module_alone() -> None:
    both = plan("llama-2-7b", **LORA, modules_to_save="embeddings,lm_head")
    head = plan("llama-2-7b", **LORA, modules_to_save="lm_head")
    assert head.trainable_parameters == both.trainable_parameters - 32000 * 4096


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**LORA, "modules_to_save": "router"}, "choose from embeddings, lm_head"),
        ({"modules_to_save": "lm_head"}, "--modules-to-save needs --method lora"),
        ({**LORA, "modules_to_save": "lm_head", "gpus": 2, "zero": 2}, "--engine torch or ddp"),
    ],
)
def test_what_is_not_planned_is_said(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan("llama-2-7b", **options)


def test_a_classifier_has_no_vocabulary() -> None:
    options = {"precision": "fp32", "attention": "eager", "seq_len": 512, "micro_batch": 4}
    model = resolve_model("bert-large-uncased")
    masked = plan(model, **options)
    found = plan(replace(model, num_labels=2), **options)
    hidden = 1024
    transform = hidden * hidden + hidden + 2 * hidden + model.vocab_size  # dense, norm, bias
    classifier = hidden * hidden + hidden + 2 * hidden + 2  # pooler, classifier
    assert found.parameters == masked.parameters - transform + classifier
    assert found.memory.components["logits"] < 10_000
    assert found.memory.allocated_bytes < masked.memory.allocated_bytes


def test_a_classifier_is_planned_for_encoders() -> None:
    with pytest.raises(ValueError, match="sequence classification is planned for bert"):
        plan(replace(resolve_model("llama-2-7b"), num_labels=2))


def test_updating_in_the_backward_pass_keeps_no_gradients() -> None:
    options = {"seq_len": 512, "checkpointing": "full"}
    without = plan("llama-2-7b", **options)
    found = plan("llama-2-7b", **options, optimizer_in_backward=True)
    assert not [e for e in found.memory.ledger.entries if e.name.startswith("gradients of")]
    weights = found.memory.ledger.components("forward")["weights"]
    states = found.memory.components["optimizer_states"]
    assert found.memory.allocated_bytes < 1.15 * (weights + states)
    assert without.memory.allocated_bytes - found.memory.allocated_bytes > weights
    with pytest.raises(ValueError, match="--optimizer-in-backward is planned for"):
        plan("llama-2-7b", **options, optimizer_in_backward=True, grad_accum=2)


def test_eight_bits_of_gptq_are_twice_four() -> None:
    def packed(kind: str) -> int:
        found = plan("llama-2-7b", method="lora", seq_len=128, quantization=kind)
        return sum(e.bytes for e in found.memory.ledger.entries if e.name.endswith(kind))

    assert packed("gptq8") == pytest.approx(2 * packed("gptq4"), rel=0.02)
