"""Other kernels than those of the curves: earlier and later attention, products of 8 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search.speed import Kinds, Modelled
from vram_plan.estimator.speed.flash import for_kernels
from vram_plan.estimator.speed.fp8 import Recipe, in_fp8, recipe_named, recipe_of
from vram_plan.estimator.speed.step_time import StepTime, step_time, step_work, time_of
from vram_plan.estimator.speed.traffic import transfers
from vram_plan.estimator.speed.work import Kernel
from vram_plan.profiles.efficiency import curves_of
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model

CARDS = {name: find_gpu(name) for name in ("a100-80gb-sxm", "h100-80gb-sxm", "b200")}


def config(gpu: str = "h100-80gb-sxm", **options: Any) -> TrainConfig:
    chosen = {"gpu": CARDS[gpu], "seq_len": 4096, "attention": "flash", **options}
    return resolve(resolve_model("llama-3.1-8b"), chosen)


def step(run: TrainConfig) -> StepTime:
    found = step_time(run)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("gpu", "options", "forward", "backward"),
    [
        ("a100-80gb-sxm", {}, 1.0, 1.0),
        ("a100-80gb-sxm", {"stack": "flash-attn=2.6.3"}, 1.0, 1.0),
        ("a100-80gb-sxm", {"stack": "flash-attn=1.0.9"}, 1 / 2, 1 / 2),
        ("a100-80gb-sxm", {"stack": "flash-attn=triton"}, 1 / 1.4, 1 / 2),
        ("a100-80gb-sxm", {"stack": "torch=2.1.2", "attention": "sdpa"}, 1 / 2, 1 / 2),
        ("a100-80gb-sxm", {"stack": "torch=2.2.0", "attention": "sdpa"}, 1.0, 1.0),
        ("h100-80gb-sxm", {"stack": "nemo-container=24.07", "engine": "megatron"}, 1.59, 1.59),
        ("h100-80gb-sxm", {"stack": "transformer-engine=2.0", "engine": "megatron"}, 1.59, 1.59),
        ("h100-80gb-sxm", {"engine": "megatron"}, 1.0, 1.0),
        ("a100-80gb-sxm", {"stack": "nemo-container=24.07", "engine": "megatron"}, 1.0, 1.0),
        ("h100-80gb-sxm", {"stack": "transformer-engine=2.0"}, 1.0, 1.0),
    ],
)
def test_attention_is_as_fast_as_its_kernels(
    gpu: str, options: dict[str, Any], forward: float, backward: float
) -> None:
    curves = curves_of(CARDS[gpu])
    found = for_kernels(curves, config(gpu, gpus=8, **options), CARDS[gpu])
    assert found.attention_forward == pytest.approx(curves.attention_forward * forward)
    assert found.attention_backward == pytest.approx(curves.attention_backward * backward)
    assert (
        replace(
            found,
            attention_forward=curves.attention_forward,
            attention_backward=curves.attention_backward,
        )
        == curves
    )


def test_the_step_waits_for_earlier_kernels() -> None:
    parts = [
        step(config("a100-80gb-sxm", stack=stack)).parts
        for stack in ("flash-attn=2.6.3", "flash-attn=triton", "flash-attn=1.0.9")
    ]
    attention = [one["attention"] for one in parts]
    assert attention[0] < attention[1] < attention[2] < 2.001 * attention[0]
    assert parts[0]["matrix products"] == parts[2]["matrix products"]


def test_nemo_hides_tensor_collectives_in_pieces() -> None:
    run: dict[str, Any] = {"engine": "megatron", "gpus": 8, "tp": 4, "sequence_parallel": True}
    plain = transfers(config(**run))
    nemo = transfers(config(**run, stack="nemo-container=24.07"))
    hidden = [one for one in plain if "hidden states" in one.name]
    pieces = [one for one in nemo if "hidden states" in one.name]
    assert [one.bytes for one in hidden] == [one.bytes for one in pieces]
    assert None in {one.overlaps for one in hidden}
    assert {one.overlaps for one in pieces} == {"forward", "backward"}


def recipe(name: str, gpu: str = "h100-80gb-sxm", *, compiled: bool = True) -> Recipe:
    return recipe_named(name, find_gpu(gpu), kept=name.startswith("te-"), compiled=compiled)


DELAYED, CURRENT = recipe("te-delayed"), recipe("te-current")
BY_TENSOR, BY_ROW = recipe("ao-tensorwise"), recipe("ao-rowwise")


def narrow(run: TrainConfig, recipe: Recipe) -> list[tuple[Kernel, int]]:
    return list(in_fp8(step_work(run), recipe).whole)


def test_blocks_multiply_in_8_bits_and_the_head_in_16() -> None:
    run = config(micro_batch=2)
    before = {k: n for k, n in step_work(run).whole if k.kind == "matmul"}
    products = [(k, n) for k, n in narrow(run, DELAYED) if k.kind == "matmul"]
    eight = sum(k.flops * n for k, n in products if k.itemsize == 1)
    sixteen = sum(k.flops * n for k, n in products if k.itemsize == 2)
    assert eight + sixteen == pytest.approx(sum(k.flops * n for k, n in before.items()))
    model = run.model
    head = 6.0 * 2 * 4096 * model.hidden_size * model.vocab_size
    assert sixteen == pytest.approx(head)


def cast_bytes(run: TrainConfig, recipe: Recipe) -> float:
    before = dict(step_work(run).whole)
    return sum(k.bytes * n for k, n in narrow(run, recipe) if k not in before and not k.flops)


def test_casts_are_counted_by_element() -> None:
    """A block of this model: inputs of q, k, v, o, gate, up and down, and their gradients."""
    run = config(micro_batch=2)
    model, tokens = run.model, 2 * 4096
    hidden, wide, kv = model.hidden_size, model.intermediate_size, model.kv_dim
    layers = model.num_hidden_layers
    inputs = layers * tokens * (6 * hidden + wide)
    gradients = layers * tokens * (3 * hidden + 2 * kv + 2 * wide)
    weights = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * wide)
    delayed = 4 * (inputs + gradients + weights)
    assert cast_bytes(run, DELAYED) == pytest.approx(delayed)
    assert cast_bytes(run, CURRENT) == pytest.approx(1.5 * delayed)
    by_tensor = 5 * (inputs + gradients) + 3 * weights + 2 * (inputs + gradients)
    assert cast_bytes(run, BY_TENSOR) == pytest.approx(by_tensor)
    assert cast_bytes(run, BY_ROW) == pytest.approx(10 * (inputs + gradients + weights))


def test_weights_are_cast_once_a_step() -> None:
    run = config(grad_accum=4)
    one, kept = (
        cast_bytes(run, replace(DELAYED, inputs=0.0, gradients=0.0, kept=kept))
        for kept in (False, True)
    )
    assert one == pytest.approx(4 * kept)


@pytest.mark.parametrize(
    ("name", "gpu", "bytes_each"),
    [
        ("te-delayed", "h100-80gb-sxm", 4.0),  # 2 read, 1 written, 1 written transposed
        ("te-delayed", "b200", 3.0),  # products read either way
        ("te-delayed", "rtx-5090-32gb", 4.0),  # no data-centre Blackwell
        ("te-current", "b200", 5.0),  # read once more for the largest value
        ("te-mxfp8", "b200", 2 + 2 * 33 / 32),
        ("te-blockwise", "h100-80gb-sxm", 2 + 2 * 33 / 32),
        ("te-nvfp4", "gb300", 4 + 2 * 9 / 16),
    ],
)
def test_bytes_of_a_cast_by_recipe_and_card(name: str, gpu: str, bytes_each: float) -> None:
    found = recipe(name, gpu)
    assert found.inputs == found.gradients == found.weights == pytest.approx(bytes_each)
    assert found.kept


def test_products_of_4_bits_run_at_their_own_peak() -> None:
    run, card = config(gpu="b200", micro_batch=2), CARDS["b200"]
    curves = curves_of(card)
    four, eight = (
        time_of(in_fp8(step_work(run), recipe(name, "b200")), card, curves).parts
        for name in ("te-nvfp4", "te-mxfp8")
    )
    assert card.peak_flops["fp4"] == 2 * card.peak_flops["fp8"]
    assert 0.5 < four["matrix products"] / eight["matrix products"] < 0.8  # the head has 16 bits


def test_the_option_is_timed_as_its_recipe() -> None:
    plain = config(micro_batch=2, compile=True)
    run = config(micro_batch=2, compile=True, precision="fp8")
    found, card = recipe_of(run), CARDS["h100-80gb-sxm"]
    assert found == BY_TENSOR
    by_hand = time_of(in_fp8(step_work(plain), found), card, curves_of(card))
    assert step(run).seconds == pytest.approx(by_hand.seconds)
    assert step(run).peak_flops == card.peak_flops["fp8"]
    eager = config(micro_batch=2, precision="fp8")
    assert step(eager).seconds > step(run).seconds


def test_8_bits_are_faster_than_16_but_not_twice() -> None:
    run = config(micro_batch=2)
    curves = replace(curves_of(run.gpu), matmul_narrow=curves_of(run.gpu).matmul)
    work = step_work(run)
    seconds = [
        time_of(each, work.gpu, curves).seconds
        for each in (work, *(in_fp8(work, recipe) for recipe in (DELAYED, CURRENT, BY_ROW)))
    ]
    assert seconds[0] > seconds[3] > seconds[2] > seconds[1] > seconds[0] / 2


@pytest.mark.parametrize("engine", ["megatron", "ddp"])
@pytest.mark.parametrize("stack", ["", "nemo-container=24.07", "flash-attn=triton"])
def test_a_search_leaves_nothing_out_for_its_kernels(engine: str, stack: str) -> None:
    """Its floor counts with the kernels of the stack: never above the step time."""
    speed = Modelled()
    run = config(engine=engine, gpus=8, micro_batch=3, stack=stack)
    kinds = Kinds(speed.work(run), speed.traffic(run))
    floor = speed.at_least(run, (run.micro_batch, run.grad_accum), kinds)
    assert floor is not None
    assert floor <= 1 / step(run).tokens_per_second * (1 + 1e-9)
    assert floor == pytest.approx(1 / step(run).tokens_per_second, rel=0.05)
