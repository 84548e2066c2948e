"""Pipeline stages: how blocks are divided and how many micro-batches wait."""

from dataclasses import replace

import pytest

from vram_plan.estimator.chain import Link
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.planner import plan
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.sharding.pipeline import in_flight, split, stages
from vram_plan.profiles.models import resolve_model


def _blocks(part: tuple[Link, ...]) -> int:
    return sum(link.count for link in part if link.segment.kind == "layer")


def _config(**options: object) -> TrainConfig:
    base = {"engine": "megatron", "gpus": 8, "grad_accum": 8}
    return resolve(resolve_model("llama-2-7b"), base | options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pp": 4}, (4, 3, 2, 1)),
        ({"pp": 4, "grad_accum": 2}, (2, 2, 2, 1)),
        ({"pp": 4, "pp_schedule": "gpipe"}, (8, 8, 8, 8)),
        ({"pp": 4, "pp_schedule": "naive", "engine": "device-map", "gpus": 4}, (1, 1, 1, 1)),
    ],
)
def test_micro_batches_in_flight(options: dict[str, object], expected: tuple[int, ...]) -> None:
    """arXiv:2104.04473, sections 2.2.1 and 2.2.2."""
    config = _config(**options)
    assert tuple(in_flight(config, stage) for stage in range(4)) == expected


def test_interleaving_keeps_more_on_the_first_stage() -> None:
    """1 + (p - 1) / (p · v) times as much: arXiv:2205.05198, section 4.2.3."""
    config = _config(pp=4, virtual_pipeline=4)
    expected = 4 * (1 + 3 / (4 * 4))
    assert in_flight(config, 0) == pytest.approx(expected, abs=1 / 4)


def test_stages_hold_every_block_once() -> None:
    config = _config(pp=4)
    passes = run_passes(config, keeps_gradients=False)
    parts = split(passes.links, 4)
    blocks = [_blocks(part) for part in parts]
    assert blocks == [8, 8, 8, 8]
    assert [part[0].segment.kind for part in parts] == ["embedding", "layer", "layer", "layer"]
    assert parts[-1][-1].segment.kind == "head"
    firsts = [next(link.first for link in part if link.segment.kind == "layer") for part in parts]
    assert firsts == [0, 8, 16, 24]


def test_uneven_blocks_go_to_the_first_stages() -> None:
    config = replace(_config(pp=1, gpus=5, gpus_per_node=5), pp=5)
    passes = run_passes(config, keeps_gradients=False)
    parts = split(passes.links, 5)
    blocks = [_blocks(part) for part in parts]
    assert blocks == [7, 7, 6, 6, 6]


def test_the_fullest_stage_is_reported() -> None:
    config = _config(pp=4)
    ranks = stages(config, run_passes(config, keeps_gradients=False))
    assert len(ranks) == 3  # first, one of the middle ones, last
    first = plan("llama-2-7b", engine="megatron", gpus=8, pp=4, grad_accum=8).memory
    assert first.allocated_bytes == max(first.instants.values())


def test_device_map_divides_all_states() -> None:
    one = plan("llama-2-7b").memory
    four = plan("llama-2-7b", engine="device-map", gpus=4).memory
    assert 0.2 < four.model_states_bytes / one.model_states_bytes < 0.3
