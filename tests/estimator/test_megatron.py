"""Megatron-LM: published readings, parallel degrees, and what must not grow with them."""

from typing import Any

import pytest

from vram_plan.estimator import plan
from vram_plan.profiles.model import ModelSpec

GPT_7B = ModelSpec(
    name="Megatron-LM CI gpt3_7b",
    model_type="gpt2",
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=16384,
    hidden_act="gelu",
    is_gated_act=False,
    vocab_size=131073,
    position_embedding_type="learned",
    position_embedding_rows=8192,
    max_position_embeddings=8192,
    attention_bias=True,
    attention_out_bias=True,
    mlp_bias=True,
    hidden_dropout=0.1,
    attention_dropout=0.1,
)
"""``--vocab-size 131073`` padded, GPT-3's shape with 8 query groups, biases and dropout."""


@pytest.mark.parametrize(
    ("options", "peak", "tolerance"),
    [
        ({"tp": 4, "micro_batch": 2, "grad_accum": 2}, 57_143_791_616, 0.01),
        (
            {"pp": 4, "virtual_pipeline": 8, "micro_batch": 1, "grad_accum": 4},
            60_720_852_992,
            0.02,
        ),
    ],
)
def test_golden_values_of_its_own_tests(
    options: dict[str, int], peak: int, tolerance: float
) -> None:
    """``tests/functional_tests/test_cases/gpt/gpt3_7b_*``, H100, NVIDIA/Megatron-LM @ d98e8a64."""
    planned = plan(GPT_7B, engine="megatron", gpus=8, seq_len=8192, **options)
    assert planned.memory.allocated_bytes == pytest.approx(peak, rel=tolerance)


def test_sequence_parallelism_divides_what_tensor_parallelism_leaves() -> None:
    common: dict[str, Any] = {"engine": "megatron", "gpus": 8, "tp": 8, "micro_batch": 4}
    whole = plan(GPT_7B, **common).memory
    split = plan(GPT_7B, **common, sequence_parallel=True).memory
    assert split.components["activations"] < 0.5 * whole.components["activations"]
    assert split.model_states_bytes == whole.model_states_bytes


@pytest.mark.parametrize("degree", ["tp", "pp", "cp"])
def test_states_never_rise_with_a_degree(degree: str) -> None:
    states = [
        plan(GPT_7B, engine="megatron", gpus=8, seq_len=4096, **{degree: n}).memory
        for n in (1, 2, 4, 8)
    ]
    sizes = [memory.model_states_bytes for memory in states]
    assert sizes == sorted(sizes, reverse=True)


def test_data_parallel_ranks_divide_masters_and_moments() -> None:
    small, large = (plan("7b", engine="megatron", gpus=n).memory for n in (1, 8))
    per_parameter = small.model_states_bytes / 7e9, large.model_states_bytes / 7e9
    assert per_parameter == pytest.approx((18.0, 6 + 12 / 8), rel=0.01)


def test_a_size_class_is_divided_as_an_exact_model_is() -> None:
    whole, split = (plan("7b", engine="megatron", gpus=8, tp=n) for n in (1, 8))
    # 18 bytes for an eighth of the weights against 6 + 12 / 8 for all of them
    expected = (18 / 8) / (6 + 12 / 8)
    ratio = split.memory.model_states_bytes / whole.memory.model_states_bytes
    assert ratio == pytest.approx(expected, rel=0.01)
    assert split.parameters == 7_000_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp": 3}, "8 GPUs are not divisible by 3"),
        ({"tp": 16}, "8 GPUs are not divisible by 16"),
        ({"pp": 4, "tp": 4}, "need a multiple of 16"),
        ({"pp": 64, "gpus": 64}, "has only 32 layers"),
        ({"cp": 8, "seq_len": 8}, "must be a multiple"),
        ({"ep": 2}, "no experts"),
    ],
)
def test_impossible_degrees_are_refused_in_one_line(options: dict[str, int], message: str) -> None:
    merged = {"gpus": 8, "seq_len": 4096} | options
    with pytest.raises(ValueError, match=message) as caught:
        plan(GPT_7B, engine="megatron", **merged)
    assert "\n" not in str(caught.value)


def test_every_combination_of_degrees_has_a_plan_or_a_reason() -> None:
    for tp in (1, 2, 4):
        for pp in (1, 2, 4):
            for cp in (1, 2):
                for schedule in ("1f1b", "gpipe"):
                    memory = plan(
                        "llama-2-7b",
                        engine="megatron",
                        gpus=32,
                        tp=tp,
                        pp=pp,
                        cp=cp,
                        pp_schedule=schedule,
                        sequence_parallel=tp > 1,
                        grad_accum=4,
                    ).memory
                    assert memory.allocated_bytes >= memory.model_states_bytes > 0


def test_experts_are_divided_by_expert_parallelism() -> None:
    one, four = (
        plan("mixtral-8x7b", engine="megatron", gpus=8, ep=n).memory.model_states_bytes
        for n in (1, 4)
    )
    assert four < 0.6 * one


def test_selective_recomputation_is_that_of_core_attention_alone() -> None:
    """Korthikanti et al., arXiv:2205.05198, equation 6: what is left is 34 · s · b · h a layer.

    That is what fused attention keeps too, which writes no scores out.
    """

    def peak(attention: str, checkpointing: str) -> int:
        options = {"attention": attention, "checkpointing": checkpointing}
        return plan(GPT_7B, engine="megatron", gpus=8, tp=8, **options).memory.allocated_bytes

    assert peak("eager", "selective") == pytest.approx(peak("flash", "none"), rel=1e-3)
    assert peak("flash", "selective") == pytest.approx(peak("flash", "none"), rel=1e-3)
    scores = 32 * 32 // 8 * 2048**2 * 2  # softmax and dropout's output in 16 bits, its mask in 8
    saved = peak("eager", "none") - peak("eager", "selective")
    assert saved == pytest.approx(2.5 * scores, rel=0.1)
    assert peak("flash", "full") < peak("flash", "selective")
