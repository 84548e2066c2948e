"""Megatron-FSDP: shards by hand, whole blocks by its communication unit."""

from __future__ import annotations

from typing import Any

import pytest

from vram_plan.estimator.planner import Plan, plan
from vram_plan.estimator.search.exhaustive import exhaustive
from vram_plan.estimator.search.search import search
from vram_plan.estimator.search.space import parse_space
from vram_plan.estimator.search.speed import Modelled
from vram_plan.estimator.search.wish import Wish
from vram_plan.estimator.speed.cost import Workload
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.models import resolve_model


def planned(model: str = "llama-3.1-8b", **options: Any) -> Plan:
    base = {"engine": "megatron", "fsdp": "full-shard", "gpus": 8, "gpu": find_gpu("h200-141gb")}
    return plan(resolve_model(model), **base | {"seq_len": 2048} | options)


def entry(found: Plan, name: str) -> int:
    return sum(one.bytes for one in found.memory.ledger.entries if one.name == name)


def block(found: Plan) -> int:
    model = found.config.model
    hidden, wide, kv = model.hidden_size, model.intermediate_size, model.kv_dim
    return 2 * hidden * (hidden + kv) + 3 * hidden * wide + 2 * hidden


@pytest.mark.parametrize("gpus", [2, 8, 64])
def test_everything_is_divided(gpus: int) -> None:
    found = planned(gpus=gpus)
    own = -(-found.trainable_parameters // gpus)
    assert entry(found, "shards of the weights") == pytest.approx(2 * own, abs=2)
    assert entry(found, "shards of the main gradients") == 2 * own
    assert entry(found, "shards of fp32 main weights") == 4 * own
    assert entry(found, "optimizer states") == 8 * own
    kept = planned(gpus=gpus, fsdp="grad-op")
    assert entry(kept, "shards of the weights") == 2 * found.trainable_parameters
    assert entry(kept, "gathered blocks") == 0


@pytest.mark.parametrize(("model", "blocks"), [("llama-3.1-8b", 4), ("llama-3-70b", 2)])
def test_blocks_are_gathered_ahead_by_elements(model: str, blocks: int) -> None:
    """Half of 10⁹ elements ahead: three blocks of 218 million, one of 856 million."""
    found = planned(model)
    assert entry(found, "gathered blocks") == blocks * 2 * block(found)
    waiting = min(10**9 + block(found), found.config.model.num_hidden_layers * block(found))
    if 2 * block(found) > 10**9:
        waiting = 3 * block(found)
    assert entry(found, "gradients on their way into shards") == 2 * waiting


def test_gathered_in_8_bits() -> None:
    """Weights that are held in 8 bits travel so; before Blackwell the one that runs is turned."""
    options: dict[str, Any] = {"precision": "fp8", "weights_dtype": "fp8"}
    hopper = planned(**options)
    blackwell = planned(**options, gpu=find_gpu("b200"))
    norms = 2 * hopper.config.model.hidden_size
    whole = 4 * (block(hopper) + norms)
    assert entry(blackwell, "gathered blocks") == whole
    assert entry(hopper, "gathered blocks") == whole + block(hopper)
    assert entry(hopper, "weights in 8 bits") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp": "hybrid-shard", "gpus": 16}, "choose full-shard or grad-op"),
        ({"zero": 1}, "drop --zero 1"),
        ({"pp": 2}, "--pp 1 --ep 1"),
        ({"precision": "fp8"}, "choose --weights-dtype fp8"),
        ({"engine": "nanotron"}, "--fsdp full-shard with --engine nanotron"),
    ],
)
def test_what_is_not_planned_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(**options)


def test_a_step_gathers_twice_and_scatters_once() -> None:
    full, kept = (planned(fsdp=one, gpus=16).step for one in ("full-shard", "grad-op"))
    assert full is not None
    assert kept is not None
    assert full.seconds >= kept.seconds
    assert full.parts["communication: all-gather"] > 0


def test_a_search_equals_trying_everything() -> None:
    ranges = {
        "gpus": "2,8,16",
        "gpu": "h100-80gb-sxm,a100-80gb-sxm",
        "engine": "megatron,fsdp2",
        "fsdp": "full-shard,grad-op",
        "checkpointing": "none,full",
        "micro_batch": "auto",
        "seq_len": "512",
    }
    space = parse_space(resolve_model("llama-3.2-1b"), ranges)
    for objective in ("throughput", "memory", "cost"):
        wish = Wish(objective=objective, top=4, workload=Workload(tokens=10**9))
        every, quick = exhaustive(space, wish, Modelled()), search(space, wish, Modelled())
        assert quick.plans == every.plans
        assert quick.front == every.front
