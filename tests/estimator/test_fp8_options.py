"""Products in 8 bits: which options go together, and what beside them is Megatron-LM's."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from vram_plan.estimator import choices
from vram_plan.estimator.fp8 import casting, gpu_refusal
from vram_plan.estimator.planner import Plan, plan
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search.exhaustive import exhaustive
from vram_plan.estimator.search.search import search
from vram_plan.estimator.search.space import parse_space
from vram_plan.estimator.search.speed import Modelled
from vram_plan.estimator.search.wish import Wish
from vram_plan.estimator.speed.cost import Workload
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model

MIB = 2**20
HOPPER = find_gpu("h100-80gb-sxm")


def planned(**options: Any) -> Plan:
    base = {"seq_len": 2048, "gpu": HOPPER, "engine": "megatron", "gpus": 8}
    return plan(resolve_model("llama-3.1-8b"), **base | options)


def entry(found: Plan, name: str) -> int:
    return sum(one.bytes for one in found.memory.ledger.entries if one.name == name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": find_gpu("a100-80gb-sxm")}, "a100-80gb-sxm has compute capability 8.0"),
        ({"gpu": find_gpu("v100-32gb-sxm")}, "compute capability 7.0"),
        ({"gpu": HOPPER, "fp8_recipe": "te-mxfp8"}, "te-mxfp8 needs 10.0"),
        ({"gpu": find_gpu("l40s-48gb"), "fp8_recipe": "te-blockwise"}, "te-blockwise needs 9.0"),
        ({"gpu": find_gpu("mi300x-192gb")}, "no card of NVIDIA's"),
        ({"engine": "deepspeed", "zero": 2}, "--engine deepspeed: planned for torch"),
        ({"engine": "nanotron"}, "--engine nanotron: planned for torch"),
        ({"engine": "ddp", "method": "lora"}, "--method lora: 8-bit products"),
        ({"engine": "ddp", "weights_dtype": "fp8"}, "--fp8-param-gather"),
        ({"engine": "fsdp2", "fp8_recipe": "te-delayed"}, "choose from ao-tensorwise, ao-rowwise"),
        ({"weights_dtype": "fp16"}, "choose bf16 or fp32"),
        ({"seq_len": 2044}, "2044 tokens of a micro-batch are no multiple of 16"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(precision="fp8", **options)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="--fp8-recipe te-delayed needs --precision fp8"):
        planned(fp8_recipe="te-delayed")
    with pytest.raises(ValueError, match="--weights-dtype fp8 needs --precision fp8"):
        planned(weights_dtype="fp8")
    with pytest.raises(ValueError, match="dense decoders, not mistralai/Mixtral"):
        plan(resolve_model("mixtral-8x7b"), precision="fp8", engine="megatron", gpus=8)
    with pytest.raises(ValueError, match="Conv1D"):
        plan(resolve_model("gpt2"), precision="fp8")
    with pytest.raises(ValueError, match="unties the head"):
        plan(resolve_model("llama-3.2-1b"), precision="fp8", fp8_recipe="te-delayed")


def test_recipes_by_engine() -> None:
    model = resolve_model("llama-3.1-8b")
    for engine, gpus, recipe in (
        ("torch", 1, "ao-tensorwise"),
        ("ddp", 2, "ao-tensorwise"),
        ("fsdp2", 2, "ao-tensorwise"),
        ("megatron", 2, "te-delayed"),
    ):
        found = resolve(model, {"precision": "fp8", "engine": engine, "gpus": gpus})
        assert found.fp8_recipe == recipe
        assert found.compute_dtype == "bf16"
        assert any(recipe in note for note in found.assumptions)
        eight = casting(found)
        assert eight is not None
        assert eight.gathered == (engine == "fsdp2")
    assert casting(resolve(model, {})) is None


def test_cards_without_8_bits_are_not_said_to_fit() -> None:
    found = planned(precision="fp8", gpu=None)
    names = {fit.gpu for fit in found.fits}
    assert "h100-80gb-sxm" in names
    assert not names & {"a100-80gb-sxm", "v100-32gb-sxm"}
    assert all(not gpu_refusal(found.config, find_gpu(name)) for name in names)


@pytest.mark.parametrize("objective", ["throughput", "memory"])
def test_a_search_over_8_bits_equals_trying_everything(objective: str) -> None:
    """Cards that refuse a recipe, keep other layouts, or have other peaks."""
    ranges = {
        "gpus": "1,4",
        "gpu": "a100-80gb-sxm,l40s-48gb,h100-80gb-sxm,b200",
        "precision": "bf16,fp8",
        "engine": "torch,ddp,megatron",
        "checkpointing": "none,full",
        "micro_batch": "auto",
        "seq_len": "512",
    }
    space = parse_space(resolve_model("llama-3.2-1b"), ranges)
    wish = Wish(objective=objective, top=4, workload=Workload(tokens=10**9))
    every, quick = exhaustive(space, wish, Modelled()), search(space, wish, Modelled())
    assert quick.plans == every.plans
    assert quick.front == every.front
    precisions = {one.config.precision for one in every.plans}
    assert "fp8" in precisions or objective == "memory"


def test_megatrons_precision_aware_optimizer() -> None:
    """``--exp-avg-dtype bf16``: Transformer Engine keeps the 16 bits that a bf16 weight lacks."""
    plain, aware = planned(), planned(state_dtype="bf16")
    own = -(-plain.trainable_parameters // 8)
    assert entry(plain, "optimizer states") == 8 * own
    assert entry(aware, "optimizer states") == 4 * own
    assert entry(plain, "fp32 master weights") == 4 * own
    assert entry(aware, "remainders of fp32 master weights") == 2 * own
    # Megatron-LM keeps masters itself beside other recipes than delayed scaling.
    eight = {"precision": "fp8", "state_dtype": "bf16", "weights_dtype": "bf16"}
    assert entry(planned(**eight), "remainders of fp32 master weights") == 2 * own
    current = planned(**eight, fp8_recipe="te-current")
    assert entry(current, "fp32 master weights") == 4 * own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ddp"}, "Megatron-LM alone has it"),
        ({"zero": 0}, "drop --zero 0"),
        ({"optimizer": "sgd"}, "needs --optimizer adamw"),
    ],
)
def test_16_bit_moments_elsewhere_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(state_dtype="bf16", **options)


def test_overlapped_tensor_ranks_have_workspaces_of_their_own() -> None:
    """Three streams, 32 MiB each from Hopper on (``cpp_extensions/gemm.py``)."""
    split = {"tp": 2, "sequence_parallel": True}
    name = "cuBLAS workspaces of overlapped products"
    assert entry(planned(**split), name) == 0
    assert entry(planned(**split, stack="tp-comm-overlap=1"), name) == 3 * 32 * MIB
    alone = planned(tp=2, stack="tp-comm-overlap=1")
    assert entry(alone, name) == 0


@pytest.mark.parametrize("engine", ["torch", "ddp", "fsdp2", "megatron"])
def test_every_combination_is_planned_or_refused_in_one_line(engine: str) -> None:
    """Whatever is planned has a peak, a step time and what it asked for."""
    model, planned_ones = resolve_model("qwen2.5-0.5b"), 0
    refusals: list[str] = []
    for recipe, weights, name in product(
        choices.FP8_RECIPES,
        ("bf16", "fp32", "fp8"),
        ("l40s-48gb", "h100-80gb-sxm", "b200", "rtx-5090-32gb"),
    ):
        options = {"fp8_recipe": recipe, "weights_dtype": weights, "gpu": find_gpu(name)}
        gpus = 1 if engine == "torch" else 2
        try:
            found = plan(model, precision="fp8", engine=engine, gpus=gpus, seq_len=256, **options)
        except ValueError as error:
            refusals.append(str(error))
            continue
        planned_ones += 1
        assert found.config.fp8_recipe == recipe
        assert found.memory.allocated_bytes > 0
        assert found.step is not None
        assert found.step.seconds > 0
    assert planned_ones
    assert all(one.startswith("--") and "\n" not in one for one in refusals)
