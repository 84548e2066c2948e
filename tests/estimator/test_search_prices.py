"""What a search works out once and prices anew for each GPU equals what a plan works out."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.search.cells import Cells
from vram_plan.estimator.search.passes import Prices, added_up
from vram_plan.estimator.search.sent import Sent
from vram_plan.estimator.search.space import parse_space
from vram_plan.estimator.search.tally import Tally
from vram_plan.estimator.search.variant import varied
from vram_plan.estimator.search.wish import Wish
from vram_plan.estimator.speed.phases import chain_work, passing
from vram_plan.estimator.speed.roofline import kernel_seconds
from vram_plan.estimator.speed.traffic import NotModelled, transfers
from vram_plan.profiles.efficiency import curves_of
from vram_plan.profiles.gpus import GpuSpec, find_gpu, load_gpus
from vram_plan.profiles.models import resolve_model
from vram_plan.profiles.nodes import default_node

MODEL = resolve_model("gpt2")
GPUS = st.sampled_from(sorted(load_gpus()))
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@QUIET
@given(
    name=GPUS,
    ranks=st.sampled_from([1, 2]),
    options=st.sampled_from(
        [
            {},
            {"checkpointing": "full"},
            {"attention": "eager", "precision": "fp32"},
            {"method": "qlora"},
            {"method": "lora", "quantization": "int8"},
        ]
    ),
)
def test_a_pass_added_up_takes_what_its_kernels_take(
    name: str, ranks: int, options: dict[str, Any]
) -> None:
    gpu, scale = find_gpu(name), 1.25
    config = resolve(MODEL, {"seq_len": 256, "micro_batch": 3} | options)
    work = chain_work(run_passes(config, keeps_gradients=True).links)
    curves, prices = curves_of(gpu), Prices(gpu)
    taken = passing(work, gpu, curves, key_ranks=ranks, scale=scale)
    for backward, wanted in ((False, taken.forward), (True, taken.backward)):
        added = added_up(work, key_ranks=ranks, scale=scale, backward=backward)
        device = prices.seconds(added)
        filled = sum(  # to whole tiles, which the search leaves out
            (kernel_seconds(kernel, gpu, curves) * count * scale)
            * (ranks if kernel.kind == "attention" else 1)
            for kernel, count in work
            if (kernel.phase != "forward") == backward
        )
        assert 0.9 * filled <= device <= filled * (1 + 1e-9)
        host = added.launches * curves.launch_seconds
        assert max(filled, host) == pytest.approx(wanted)


@QUIET
@given(
    names=st.lists(GPUS, min_size=2, max_size=4),
    options=st.sampled_from(
        [
            {"zero": 0},
            {"zero": 2},
            {"zero": 3, "checkpointing": "full"},
            {"zero": 3, "offload": "optimizer+params"},
            {"engine": "ddp"},
            {"fsdp": "hybrid-shard"},
            {"tp": 2},
        ]
    ),
)
def test_traffic_of_one_gpu_is_priced_for_others(names: list[str], options: dict[str, Any]) -> None:
    sent = Sent()
    base = resolve(MODEL, {"gpus": 16, "seq_len": 64} | options)
    for name in names:
        gpu = find_gpu(name)
        config = varied(base, gpu=gpu, node=default_node(gpu, base.gpus_per_node))
        try:
            wanted = transfers(config)
        except NotModelled:
            with pytest.raises(NotModelled):
                sent.at_least(config, sent.alike(config), 0.0, config)
            continue
        for mine, its in zip(
            sent.at_least(config, sent.alike(config), 0.0, config), wanted, strict=True
        ):
            assert mine.seconds == pytest.approx(its.seconds, rel=1e-12)
            assert (mine.name, mine.bytes, mine.overlaps, mine.count, mine.window) == (
                its.name,
                its.bytes,
                its.overlaps,
                its.count,
                its.window,
            )


@pytest.mark.parametrize(
    "typed",
    [
        {"zero": "none,0,3", "tp": "1,2", "gpus_per_node": "2,4"},
        {"zero": "any", "offload": "any", "checkpointing": "none,full"},
        {"fsdp": "any", "method": "full,lora", "precision": "any"},
        {"engine": "device-map,torch,ddp"},
        {"pp": "1,2", "tp": "1,2", "pp_schedule": "1f1b,gpipe"},
    ],
)
def test_a_recipe_put_on_a_machine_is_what_resolve_makes_of_it(typed: dict[str, str]) -> None:
    ranges = {"gpus": "1..4,8,12,16", "gpu": "t4,rtx-4090,h100-80gb-sxm", "seq_len": "64"}
    space = parse_space(MODEL, ranges | typed)
    cells = Cells(space, Wish(objective="throughput"), Tally())
    found = 0
    for machine in cells.machines:
        runs = {one.recipe: one for one in cells.runnable[machine.kind]}
        for place, recipe in enumerate(space.recipes):
            wanted = _resolved(space, machine.gpus, machine.gpu, recipe)
            one = runs.get(place)
            assert (one is None) == isinstance(wanted, str)
            if one is not None:
                assert cells.config(one, machine) == wanted
                found += 1
    assert found > 0


def _resolved(space: Any, gpus: int, gpu: GpuSpec | None, recipe: dict[str, Any]) -> Any:
    try:
        return space.config({"gpus": gpus, "gpu": gpu} | recipe)
    except ValueError as error:
        return str(error)
