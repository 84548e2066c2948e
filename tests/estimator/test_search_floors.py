"""What lets a search leave configurations out: floors, and what is told again, as laws."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.overhead import overhead_bytes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search.alike import passes_of, staying, undivided
from vram_plan.estimator.search.cells import grows_by_nodes, stretch
from vram_plan.estimator.search.closed_form import read
from vram_plan.estimator.search.held import Held
from vram_plan.estimator.search.likeness import has_steady_links
from vram_plan.estimator.search.needs import MARGIN_BYTES, Needs
from vram_plan.estimator.search.room import memory_needed, need
from vram_plan.estimator.search.sent import Sent
from vram_plan.estimator.search.speed import Kinds, Modelled
from vram_plan.estimator.search.trial import MOST_SEQUENCES
from vram_plan.estimator.search.variant import varied
from vram_plan.estimator.simulate import RECOMPUTED, Cost, simulate
from vram_plan.estimator.speed.collectives import seconds
from vram_plan.estimator.speed.links import group_of
from vram_plan.estimator.speed.phases import chain_work
from vram_plan.estimator.speed.step_time import step_time, tokens_per_step
from vram_plan.estimator.speed.traffic import NotModelled, transfers
from vram_plan.estimator.speed.worked import noting, worked
from vram_plan.profiles.gpus import find_gpu, load_gpus
from vram_plan.profiles.models import resolve_model
from vram_plan.profiles.nodes import default_node

MODELS = {name: resolve_model(name) for name in ("gpt2", "llama-3.2-1b")}
CARDS = ("rtx-4090", "a40", "a100-80gb-sxm", "h100-80gb-sxm", "mi300x", "b200")
RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {"zero": 0},
    {"zero": 1},
    {"zero": 2},
    {"zero": 2, "checkpointing": "selective", "offload": "optimizer"},
    {"zero": 3},
    {"zero": 3, "checkpointing": "full", "offload": "optimizer+params"},
    {"zero": 3, "optimizer": "adamw-8bit"},
    {"fsdp": "full-shard", "checkpointing": "full"},
    {"fsdp": "grad-op"},
    {"fsdp": "hybrid-shard"},
    {"tp": 2},
    {"tp": 4, "checkpointing": "full"},
    {"tp": 2, "zero": 2, "sequence_parallel": True},
    {"method": "lora", "offload": "activations"},
    {"method": "qlora", "checkpointing": "offload"},
)
QUIET = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def configs(draw: st.DrawFn, /, **fixed: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "gpu": find_gpu(draw(st.sampled_from(CARDS))),
        "gpus": draw(st.sampled_from([2, 4, 8, 16, 24, 64])),
        "seq_len": draw(st.sampled_from([90, 128, 512])),
        "micro_batch": draw(st.integers(1, 9)),
    }
    options |= draw(st.sampled_from(RECIPES)) | fixed
    if options["gpus"] % options.get("tp", 1):
        options["gpus"] = 8
    try:
        return resolve(MODELS[draw(st.sampled_from(sorted(MODELS)))], options)
    except ValueError:
        return resolve(MODELS["gpt2"], {"gpu": options["gpu"], "gpus": 16, "zero": 2})


@QUIET
@given(config=configs(), batch=st.integers(1, 64))
def test_a_variant_equals_what_replace_makes(config: TrainConfig, batch: int) -> None:
    changes: dict[str, Any] = {"micro_batch": batch, "grad_accum": 3, "gpu": None}
    assert varied(config, **changes) == replace(config, **changes)
    assert not hasattr(TrainConfig, "__post_init__")


@QUIET
@given(config=configs(), batch=st.integers(1, 9))
def test_traffic_told_again_is_the_plans_but_for_rounded_activations(
    config: TrainConfig, batch: int
) -> None:
    sent, one = Sent(), varied(config, micro_batch=1)
    for checkpointing in ("none", "full"):  # another recipe may have been the first to ask
        other = varied(config, checkpointing=checkpointing)
        try:
            sent.at_least(other, sent.alike(other), 0.0, other)
        except NotModelled:
            return
    config = varied(config, micro_batch=batch)
    first, second = (
        sum(x.bytes for x in transfers(varied(one, micro_batch=b)) if x.name.startswith("activa"))
        for b in (1, 2)
    )
    waiting = (first + (batch - 1) * (second - first)) / 2
    found = sent.at_least(config, sent.alike(one), waiting, config)
    wanted = transfers(config)
    assert [x.name for x in found] == [x.name for x in wanted]
    for mine, its in zip(found, wanted, strict=True):
        if "activations" in mine.name:
            assert 0.98 * its.bytes <= mine.bytes <= its.bytes
        else:
            assert mine == its


def kinds_of(speed: Modelled, config: TrainConfig) -> Kinds:
    return Kinds(speed.work(config), speed.traffic(config))


@QUIET
@given(config=configs(), most=st.integers(1, 12))
def test_no_micro_batch_beats_the_floor_of_a_larger_one(config: TrainConfig, most: int) -> None:
    step = step_time(config)
    speed = Modelled()
    batch = (config.micro_batch + most, config.grad_accum)
    floor = speed.at_least(config, batch, kinds_of(speed, config))
    assert (floor is None) == (step is None)
    if step is not None and floor is not None:
        assert floor * step.tokens_per_second <= 1 + 1e-9
        assert config.gpu is not None
        taken = config.gpus / step.tokens_per_second * (1 + 1e-9)
        rough, least = (
            f(config, config.gpu, speed.work(config)) for f in (speed.rough, speed.least)
        )
        assert rough <= taken
        assert least <= taken


@QUIET
@given(config=configs(gpus=24), nodes=st.integers(2, 8), beyond=st.integers(0, 6))
def test_the_floor_of_all_numbers_of_nodes_holds_for_each(
    config: TrainConfig, nodes: int, beyond: int
) -> None:
    if not grows_by_nodes(config):
        return
    few, own, most = (varied(config, gpus=8 * n) for n in (2, nodes, nodes + beyond))
    speed, step = Modelled(), step_time(own)
    batch = (config.micro_batch + beyond, config.grad_accum)
    floor = speed.at_least(few, batch, kinds_of(speed, few), most)
    assert (floor is None) == (step is None)
    if floor is not None and step is not None:
        own_seconds = step.seconds / tokens_per_step(own)
        assert floor * few.gpus <= own_seconds * own.gpus * (1 + 1e-9)


@QUIET
@given(config=configs(gpus=8), ranks=st.integers(2, 8), beyond=st.integers(0, 6))
def test_the_floor_of_a_stretch_inside_a_machine_holds_for_each(
    config: TrainConfig, ranks: int, beyond: int
) -> None:
    assert config.gpu is not None
    sizes = [ranks * config.tp for ranks in range(2, 9) if ranks * config.tp <= 8]
    own = ranks * config.tp
    if own not in sizes or not has_steady_links(config.gpu):
        return
    here = stretch(config, own)
    alike = [n for n in sizes if stretch(config, n) == here]
    few, one, most = (
        varied(config, gpus=n, gpus_per_node=n, node=default_node(config.gpu, n))
        for n in (alike[0], own, alike[-1])
    )
    speed, step = Modelled(), step_time(one)
    batch = (config.micro_batch + beyond, config.grad_accum)
    floor = speed.at_least(few, batch, kinds_of(speed, few), most)
    assert (floor is None) == (step is None)
    if floor is not None and step is not None:
        own_seconds = step.seconds / tokens_per_step(one)
        assert floor * few.gpus <= own_seconds * one.gpus * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather", "reduce-scatter"])
def test_more_gpus_of_a_machine_never_make_a_collective_quicker_over_steady_links(
    kind: str,
) -> None:
    steady = [gpu for gpu in load_gpus().values() if has_steady_links(gpu)]
    assert len(steady) > 20
    for gpu in steady:
        precision = "bf16" if gpu.supports_bf16 else "fp16"
        options: dict[str, Any] = {"gpu": gpu, "zero": 2, "precision": precision, "seq_len": 64}
        for nbytes in (1e3, 1e6, 1e8, 3e10):
            taken = []
            for gpus in range(2, 9):
                config = resolve(MODELS["gpt2"], options | {"gpus": gpus})
                taken.append(seconds(kind, nbytes, group_of(config, gpus)))
            assert taken == sorted(taken), gpu.name


@QUIET
@given(
    name=st.sampled_from(sorted(load_gpus())),
    kind=st.sampled_from(["all-reduce", "all-gather", "reduce-scatter"]),
    nbytes=st.floats(1e3, 3e10),
    stride=st.sampled_from([1, 2, 4, 8]),
)
def test_more_nodes_never_make_a_collective_quicker(
    name: str, kind: str, nbytes: float, stride: int
) -> None:
    gpu = load_gpus()[name]
    precision = "bf16" if gpu.supports_bf16 else "fp16"
    options: dict[str, Any] = {"gpu": gpu, "gpus": 16, "zero": 2, "precision": precision}
    config = resolve(MODELS["gpt2"], options)
    taken = []
    for nodes in range(2, 20):
        try:
            group = group_of(varied(config, gpus=8 * nodes), 8 * nodes // stride, stride)
        except NotModelled:
            return
        taken.append(seconds(kind, nbytes, group))
    assert taken == sorted(taken)


@QUIET
@given(config=configs(gpus=8), fewer=st.sampled_from([1, 2, 4, 8]), times=st.integers(1, 8))
def test_more_gpus_never_need_more_but_for_communicators_and_padding(
    config: TrainConfig, fewer: int, times: int
) -> None:
    small = fewer * config.tp
    if small == 1 and config.engine != "torch":
        return
    gpus, whole = (small, 8 * times)
    if whole < small or whole % config.tp:
        return
    few, many = (varied(config, gpus=n, gpus_per_node=min(n, 8)) for n in (gpus, whole))
    needed, beyond = (need(one).required - overhead_bytes(one) for one in (few, many))
    assert needed >= beyond - MARGIN_BYTES


@QUIET
@given(config=configs(), other=st.sampled_from(CARDS))
def test_workspaces_are_the_same_bytes_at_every_instant(config: TrainConfig, other: str) -> None:
    needs, gpu = Needs(), find_gpu(other)
    needs.of(0, config)(config, 1, 1)  # the first to ask has another GPU
    moved = varied(config, gpu=gpu)
    told = needs.of(0, moved)(moved, 1, 1)
    assert told == read(memory_needed(varied(moved, micro_batch=1, grad_accum=1))).need


@pytest.mark.parametrize("name", sorted(MODELS))
def test_accumulation_never_needs_less(name: str) -> None:
    gpu = find_gpu("a100-80gb-sxm")
    for recipe in RECIPES:
        config = resolve(MODELS[name], recipe | {"gpus": 16, "gpu": gpu, "seq_len": 128})
        once, often = (need(varied(config, grad_accum=n)).required for n in (1, 4))
        assert often >= once, recipe


@QUIET
@given(config=configs(), times=st.integers(1, 4))
def test_what_is_held_at_least_is_no_more_than_the_ledger(config: TrainConfig, times: int) -> None:
    assert config.gpu is not None
    beyond = varied(config, gpus=times * config.gpus)  # the most of several numbers of GPUs
    apart = config.gpus % config.gpus_per_node or config.engine == "torch"
    missing, most = Held().bound(0, config, MOST_SEQUENCES, config if apart else beyond)
    needed = need(config).required
    assert needed >= config.gpu.usable_bytes + missing
    fits = config.gpu.usable_bytes >= needed
    assert not fits or config.micro_batch <= most


@QUIET
@given(config=configs(), batch=st.sampled_from([1, 2]))
def test_kernels_noted_beside_the_bytes_are_those_played_for(
    config: TrainConfig, batch: int
) -> None:
    runs = [link.run for link in passes_of(config, batch).links if link.run]
    alone, costs = [worked(run) for run in runs], [_bytes(simulate(run)) for run in runs]
    simulate.cache_clear()
    worked.cache_clear()
    with noting():
        assert [_bytes(simulate(run)) for run in runs] == costs
        assert [worked(run) for run in runs] == alone


def _bytes(cost: Cost) -> tuple[Cost, list[object]]:
    """A cost and its weights, which are equal only to themselves."""
    weights: list[object] = [
        (p.name, p.numel, p.itemsize, p.trainable, p.alive) for p in cost.params
    ]
    return replace(cost, params=()), weights


@QUIET
@given(config=configs(), batch=st.sampled_from([1, 2]))
def test_one_tape_stands_for_all_whose_kernels_are_alike(config: TrainConfig, batch: int) -> None:
    own, alike = (passes_of(each, batch) for each in (config, staying(config)))
    mine, its = chain_work(own.links), chain_work(alike.links)
    if config.zero == 3 and config.checkpointing in RECOMPUTED:  # runs more of them again
        more, fewer = (
            Counter({(k.phase, k.kind, k.shape): k.bytes * count for k, count in work})
            for work in (mine, its)
        )
        assert {phase for phase, _, _ in more - fewer} <= {"recompute"}
        assert all(more[key] >= nbytes * (1 - 1e-12) for key, nbytes in fewer.items())
    else:
        assert mine == its
    assert own.inventory.numel(trainable=True) == alike.inventory.numel(trainable=True)
    assert own.inventory.tensors(trainable=True) == alike.inventory.tensors(trainable=True)
    assert own.host >= passes_of(undivided(config), batch).host
