"""What a search finds equals trying every configuration, one by one."""

from collections.abc import Hashable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search import tally
from vram_plan.estimator.search.exhaustive import exhaustive
from vram_plan.estimator.search.largest import largest
from vram_plan.estimator.search.largest_batch import largest_from, largest_that_fits
from vram_plan.estimator.search.likeness import memory_traits
from vram_plan.estimator.search.needs import Needs
from vram_plan.estimator.search.room import need, room
from vram_plan.estimator.search.search import search
from vram_plan.estimator.search.space import Space, parse_space
from vram_plan.estimator.search.speed import Kinds, Modelled, Speed
from vram_plan.estimator.search.ties import figure, grouped, leaders, limit
from vram_plan.estimator.search.trial import MOST_SEQUENCES
from vram_plan.estimator.search.wish import Candidate, Found, Wish
from vram_plan.estimator.speed.cost import Workload
from vram_plan.profiles.gpus import GpuSpec, find_gpu, load_gpus
from vram_plan.profiles.models import resolve_model

MODEL = resolve_model("gpt2")
MOST = 400
"""Configurations that are tried one by one."""
GPUS = "t4,rtx-4090,a100-40gb-sxm,a100-80gb-sxm,h100-80gb-sxm,mi250x-128gb"


class Toy:
    """A step time made up so that every option matters; its floor leaves out what it must."""

    def seconds_per_token(self, config: TrainConfig) -> float | None:
        assert config.gpu is not None
        if config.offload == "activations":
            return None
        crowd = 1 + 0.01 * config.gpus + (0.2 if config.zero == 3 else 0.0)
        alone = 1 + 0.3 / config.micro_batch
        return self.least(config, config.gpu, None) * crowd * alone / config.gpus

    def work(self, config: TrainConfig) -> Hashable:
        return (config.checkpointing, config.method, config.loss, config.precision)

    def traffic(self, config: TrainConfig) -> Hashable:
        return None

    def rough(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        return self.least(config, gpu, work) / 2

    def at_least(
        self,
        config: TrainConfig,
        batch: tuple[int, int],
        kinds: Kinds,
        most: TrainConfig | None = None,
    ) -> float | None:
        return self.seconds_per_token(replace(config, micro_batch=batch[0], grad_accum=batch[1]))

    def least(self, config: TrainConfig, gpu: GpuSpec, work: Hashable) -> float:
        peak = gpu.peak_flops.get(config.precision, gpu.peak_flops["fp32"])
        again = {"none": 3.0, "selective": 3.2, "full": 4.0, "offload": 4.1}
        return again[config.checkpointing] * (0.7 if config.method == "lora" else 1.0) / peak


RANGES: dict[str, st.SearchStrategy[str]] = {
    "gpus": st.sampled_from(["1", "8", "1..4", "2,8,16", "1,3,9", "4,8,12", "8..32:8"]),
    "zero": st.sampled_from(["none", "any", "0,2", "3", "none,1,3"]),
    "fsdp": st.sampled_from(["none", "any", "none,full-shard"]),
    "checkpointing": st.sampled_from(["none", "any", "none,full"]),
    "method": st.sampled_from(["full", "lora", "full,lora"]),
    "offload": st.sampled_from(["none", "any"]),
    "tp": st.sampled_from(["1", "1,2", "auto"]),
    "pp": st.sampled_from(["1", "1,2"]),
    "precision": st.sampled_from(["bf16", "any"]),
    "optimizer": st.sampled_from(["adamw", "adamw,adamw-8bit,lion"]),
    "gpu": st.sampled_from(["t4", "a100-80gb-sxm", GPUS]),
    "micro_batch": st.sampled_from(["auto", "auto", "1", "1..3", "2,8"]),
}


@st.composite
def questions(draw: st.DrawFn) -> tuple[Space, Wish]:
    names = draw(st.sets(st.sampled_from(sorted(RANGES)), min_size=3, max_size=7)) | {"gpu"}
    typed: dict[str, Any] = {name: draw(RANGES[name]) for name in sorted(names)}
    space = parse_space(MODEL, typed | {"seq_len": draw(st.sampled_from(["64", "512"]))})
    wish = Wish(
        objective=draw(st.sampled_from(["throughput", "cost", "time", "memory"])),
        top=draw(st.integers(1, 6)),
        global_batch=draw(st.sampled_from([None, None, 12, 16])),
        max_usd_per_hour=draw(st.sampled_from([None, None, 5.0, 20.0])),
        workload=Workload(tokens=10**9, usd_per_gpu_hour=draw(st.sampled_from([None, None, 1.5]))),
        deadline_seconds=draw(st.sampled_from([None, None, 4e-6, 1e-5])),
    )
    return space, wish


def refused(found: Found) -> dict[str, int]:
    exact = (tally.REFUSED, tally.TOO_DEAR, tally.NO_PRICE)
    return {one.reason: one.count for one in found.ruled_out if one.reason.startswith(exact)}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=questions())
def test_the_search_equals_trying_everything(question: tuple[Space, Wish]) -> None:
    compare(*question, Toy())


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=questions())
def test_the_same_with_the_real_step_time(question: tuple[Space, Wish]) -> None:
    compare(*question, Modelled())


def test_expert_ranks_without_room_are_refused_not_raised() -> None:
    typed = {"gpus": "2,8", "gpu": "h100,b200", "tp": "1,2", "ep": "1,2,8", "zero": "none,1"}
    space = parse_space(resolve_model("mixtral-8x7b"), typed | {"checkpointing": "full"})
    compare(space, Wish(objective="memory", top=3, workload=Workload(tokens=10**9)), Toy())
    assert refused(search(space, Wish(objective="memory"), Toy()))


def compare(space: Space, wish: Wish, speed: Speed) -> None:
    if space.raw > MOST:
        return
    every, quick = exhaustive(space, wish, speed), search(space, wish, speed)
    assert quick.plans == every.plans
    assert quick.front == every.front
    assert refused(quick) == refused(every)
    for found in (every, quick):
        assert found.fitting + sum(one.count for one in found.ruled_out) == space.raw


@pytest.mark.parametrize(
    "options",
    [
        {"zero": 2, "gpus": 8},
        {"zero": 3, "gpus": 16, "checkpointing": "full"},
        {"method": "lora", "gpus": 2, "engine": "ddp"},
        {"tp": 2, "gpus": 8},
    ],
)
def test_gpus_of_equal_traits_have_the_same_ledger(options: dict[str, Any]) -> None:
    by_traits: dict[Hashable, set[object]] = {}
    for gpu in load_gpus().values():
        precision = "bf16" if gpu.supports_bf16 else "fp16"
        config = resolve(MODEL, options | {"gpu": gpu, "precision": precision, "seq_len": 256})
        needed = need(config)
        by_traits.setdefault((precision, memory_traits(config)), set()).add(needed)
    assert len(by_traits) > 2
    assert all(len(found) == 1 for found in by_traits.values())


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize(
    "options", [{}, {"zero": 2, "gpus": 4}, {"zero": 3, "gpus": 8}, {"method": "qlora"}]
)
@pytest.mark.parametrize("seq_len", [64, 1000])
def test_few_readings_find_the_largest_micro_batch(
    options: dict[str, Any], checkpointing: str, seq_len: int
) -> None:
    gpu = find_gpu("rtx-4090")
    config = resolve(
        MODEL, options | {"gpu": gpu, "checkpointing": checkpointing, "seq_len": seq_len}
    )
    needs = Needs()
    own = needs.of(0, config)
    read: set[int] = set()

    def left(micro_batch: int) -> int:
        read.add(micro_batch)
        return room(config, own(config, micro_batch, 1))

    exact = largest(config, "micro_batch").micro_batch
    assert own.largest(left, MOST_SEQUENCES) == exact
    assert exact in read
    assert needs.computed <= (6 if seq_len == 1000 else 8)


@given(room=st.integers(0, 400), slope=st.integers(1, 7), bend=st.integers(0, 3))
def test_the_largest_is_found_wherever_one_looks_first(room: int, slope: int, bend: int) -> None:
    def left(count: int) -> int:
        return room - slope * (count - 1) - bend * (count - 1) ** 2 // 4

    wanted = max(count for count in range(1, 501) if left(count) >= 0)
    assert largest_that_fits(left, 500) == wanted
    for guess in (2, 3, 17, 500):
        assert largest_from(1, left, 500, guess) == wanted
        assert largest_from(1, left, 500, guess, lambda count: left(count + 1) < 0) == wanted
        assert largest_from(wanted, left, 500, guess) == wanted


@pytest.mark.parametrize("objective", ["memory", "cost", "throughput", "time"])
@given(worths=st.lists(st.floats(1e-9, 1e-3), min_size=2, max_size=2))
def test_a_figure_never_falls_where_the_objective_gets_worse(
    objective: str, worths: list[float]
) -> None:
    scale = 2.0**40 if objective == "memory" else 1.0
    low, high = (figure(objective, scale * worth) for worth in sorted(worths))
    assert low <= high
    if max(worths) > 1.001 * min(worths):
        assert low < high


def test_of_plans_that_tie_the_one_that_needs_least_is_shown() -> None:
    typed = {"gpus": "1", "gpu": "a100-80gb-sxm", "zero": "0,1,2,3"}
    space = parse_space(MODEL, typed | {"seq_len": "64", "micro_batch": "2"})
    best = exhaustive(space, Wish(objective="throughput")).plans
    assert sum(1 + len(plan.ties) for plan in best) == 4
    for plan in best:
        told = [figure("throughput", one.worth("throughput")) for one in (plan, *plan.ties)]
        assert min(told) == told[0]
        alike = [one for one, said in zip(plan.ties, told[1:], strict=True) if said == told[0]]
        assert all(plan.required_bytes <= other.required_bytes for other in alike)
    assert search(space, Wish(objective="throughput")).plans == best


def candidate(order: int, seconds: float, gpus: int = 1) -> Candidate:
    config = resolve(MODEL, {"gpus": gpus, "gpu": find_gpu("a40")})
    return Candidate(
        order=order, config=config, required_bytes=10**9 - order, seconds_per_token=seconds
    )


def test_plans_a_little_apart_tie_and_keep_their_order() -> None:
    apart = [1.0, 1.0005, 1.00099, 1.002, 1.0025]
    plans = [candidate(order, 1e-4 * times) for order, times in enumerate(apart)]
    other = candidate(9, 1e-4 * 1.0003, gpus=2)
    found = grouped([*reversed(plans), other], Wish(objective="throughput"))
    assert [(one.order, [tie.order for tie in one.ties]) for one in found] == [
        (0, [1, 2]),
        (9, []),
        (3, [4]),
    ]


@pytest.mark.parametrize("objective", ["memory", "cost", "throughput"])
@given(
    worths=st.lists(st.floats(0.99, 1.02), min_size=1, max_size=30),
    more=st.lists(st.floats(0.98, 1.02), max_size=10),
)
def test_more_plans_never_make_fewer_groups_up_to_a_worth(
    objective: str, worths: list[float], more: list[float]
) -> None:
    scale = 2.0**35 if objective == "memory" else 1e-5
    few, many = (
        leaders(objective, sorted(scale * one for one in found), MOST)
        for found in (worths, worths + more)
    )
    assert all(later <= first for first, later in zip(few, many, strict=False))
    assert len(many) >= len(few)
    for one, following in pairwise(many):
        assert following > limit(one)


def test_places_and_assignments_are_inverse() -> None:
    typed = {"gpus": "1,2", "zero": "any", "gpu": GPUS, "tp": "1..4:x2", "checkpointing": "full"}
    space = parse_space(MODEL, typed)
    assert space.raw == 2 * 5 * 6 * 3
    assert [space.place(space.at(order)) for order in range(space.raw)] == list(range(space.raw))
