"""Step time: parts, orders that hold whatever the hardware, and what is counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vram_plan.estimator.planner import plan
from vram_plan.estimator.speed.exposure import exposed
from vram_plan.estimator.speed.step_time import StepTime
from vram_plan.estimator.speed.transfer import Transfer
from vram_plan.profiles.efficiency import curves_of, load_curves
from vram_plan.profiles.gpus import load_gpus

GPU = "a100-80gb-sxm"


def step(model: str = "llama-2-7b", **options: object) -> StepTime:
    found = plan(model, **{"gpu": GPU, **options}).step
    assert found is not None
    return found


def test_no_gpu_no_step() -> None:
    assert plan("llama-2-7b").step is None
    assert plan("llama-2-7b", gpu=GPU, task="inference").step is None


def test_parts_sum_and_rates_follow() -> None:
    found = step(gpus=8, zero=2, grad_accum=2, micro_batch=2)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert found.tokens == 8 * 2 * 2 * 2048
    assert found.tokens_per_second_per_gpu * 8 == pytest.approx(found.tokens / found.seconds)
    assert all(seconds >= 0 for seconds in found.parts.values())


def test_operations_are_six_for_a_parameter_and_token() -> None:
    """Weights of matrix products (no table): 6.607e9 of Llama-2-7B; scores halved by the mask."""
    found = step()
    products = 6 * 6.607e9 * 2048
    scores = 3 * 32 * (4 * 2048 * 2048 * 4096) / 2
    assert found.needed_flops == pytest.approx(products + scores, rel=1e-3)


def test_checkpointing_costs_a_third_at_most() -> None:
    plain, full = step(micro_batch=4), step(micro_batch=4, checkpointing="full")
    assert 1.2 <= full.seconds / plain.seconds <= 1.4
    assert full.mfu < full.hfu
    assert plain.needed_flops == full.needed_flops


def test_adapters_have_no_gradients_of_frozen_weights() -> None:
    full, lora = step(), step(method="lora", adapter_dtype="bf16")
    assert lora.needed_flops < 0.72 * full.needed_flops
    assert step(method="qlora").seconds > step(method="lora").seconds
    assert step(method="qlora").parts["dequantization"] > 0


def test_written_out_attention_computes_what_the_mask_hides() -> None:
    eager = step(attention="eager", seq_len=4096)
    flash = step(seq_len=4096)
    assert eager.needed_flops == pytest.approx(flash.needed_flops, rel=1e-6)
    assert eager.executed_flops > flash.executed_flops
    assert eager.seconds > flash.seconds


def test_pipelines_wait() -> None:
    few = step("llama-2-7b", engine="megatron", gpus=8, pp=8, grad_accum=8)
    many = step("llama-2-7b", engine="megatron", gpus=8, pp=8, grad_accum=64)
    assert few.parts["pipeline bubble"] > 0
    assert many.mfu > few.mfu


@pytest.mark.parametrize("engine", ["megatron", "nanotron"])
def test_the_distributed_optimizer_divides_the_update_as_it_divides_memory(engine: str) -> None:
    """On unless --zero 0 says otherwise, in memory and in time."""
    default, on, off = (
        plan(
            "llama-2-7b", gpu=GPU, engine=engine, gpus=8, **({} if zero is None else {"zero": zero})
        )
        for zero in (None, 1, 0)
    )
    for one in (default, on, off):
        assert one.step is not None
    assert default.memory.components["optimizer_states"] == pytest.approx(
        off.memory.components["optimizer_states"] / 8, rel=0.01
    )
    parts = [one.step.parts["optimizer step"] for one in (default, on, off) if one.step]
    assert parts[0] == parts[1] == pytest.approx(parts[2] / 8, rel=0.01)


def test_small_batches_wait_for_the_host() -> None:
    small = step("gpt2", micro_batch=1, seq_len=64)
    assert small.parts["launch overhead"] > 0.2 * small.seconds


def test_size_classes_scale() -> None:
    assert step("7b").needed_flops > step("llama-2-7b").needed_flops


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.sampled_from([256, 1024, 4096]), st.booleans())
def test_more_work_takes_longer(batch: int, seq: int, recomputes: bool) -> None:
    options = {"checkpointing": "full" if recomputes else "none", "seq_len": seq}
    less = step("llama-3.2-1b", micro_batch=batch, **options)
    more = step("llama-3.2-1b", micro_batch=batch + 1, **options)
    assert more.seconds > less.seconds
    assert more.tokens_per_second >= 0.93 * less.tokens_per_second  # tiles, never a cliff
    assert 0 < less.mfu <= less.hfu < 1


def test_hidden_traffic_takes_its_share_only() -> None:
    sent = Transfer(name="gradients", part="communication: x", bytes=1, seconds=3, overlaps="step")
    assert exposed([sent], {"step": 10.0}, 0.0) == {"communication: x": 0.0}
    assert exposed([sent], {"step": 1.0}, 0.0) == {"communication: x": 2.0}
    assert exposed([sent, sent], {"step": 4.0}, 0.5) == {"communication: x": 2.0 + 2.0}


def test_every_gpu_has_curves() -> None:
    names = {family.name for family in load_curves()}
    for gpu in load_gpus().values():
        assert curves_of(gpu).name in names
    assert curves_of(load_gpus()["a100-40gb-pcie"]).name == "ampere-datacentre"
    assert curves_of(load_gpus()["h100-96gb-sxm"]).name == "hopper-500w"
