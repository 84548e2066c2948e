"""The calibration: the fit finds what is there, the file is well-formed, intervals hold."""

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from vram_plan.estimator import plan
from vram_plan.estimator.device import (
    churn_bytes,
    device_reading,
    outside_bytes,
    stratum_of,
)
from vram_plan.estimator.overhead import SLACK_SHARE
from vram_plan.profiles.calibration import Calibration, DeviceFit, load_calibration
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.measured import read_rows
from vram_plan.reports.calibrate import write
from vram_plan.reports.crossfit import Sample, coverage, crossfit, median_error, widening_for
from vram_plan.reports.readings import samples
from vram_plan.reports.validate.run import validate

GIB = 2**30
FIT = DeviceFit(
    stratum="one GPU", rows=40, fixed_bytes=GIB, churn_share=0.25, low=0.9,
    high=1.1, coverage=0.9, median_error=0.03,
)  # fmt: skip


def _samples(count: int, spread: float, coefficients: tuple[float, float]) -> list[Sample]:
    rng = random.Random(7)
    found = []
    for number in range(count):
        base, churn = rng.randint(5, 40) * GIB, rng.uniform(1, 20) * GIB
        true = base + coefficients[0] + coefficients[1] * churn
        found.append(
            Sample(
                group=f"group {number % 8}",
                base=base,
                parts=(1.0, churn),
                measured=round(true * rng.uniform(1 - spread, 1 + spread)),
            )
        )
    return found


def test_the_fit_finds_the_constants() -> None:
    found = crossfit(_samples(40, 0.0, (1.5 * GIB, 0.3)))
    assert found.coefficients[0] == pytest.approx(1.5 * GIB, rel=1e-3)
    assert found.coefficients[1] == pytest.approx(0.3, rel=1e-3)
    assert median_error(found.judged) < 1e-4


def test_no_part_is_negative() -> None:
    found = crossfit(_samples(40, 0.0, (2 * GIB, -0.1)))
    assert min(found.coefficients) >= 0


def test_one_wild_row_does_not_bend_it() -> None:
    samples = _samples(40, 0.0, (1.5 * GIB, 0.3))
    samples[3] = replace(samples[3], measured=samples[3].measured * 3)
    found = crossfit(samples)
    assert found.coefficients[1] == pytest.approx(0.3, rel=0.02)


def test_the_interval_covers_what_it_says() -> None:
    found = crossfit(_samples(400, 0.2, (1.5 * GIB, 0.3)))
    assert coverage(found.judged) == pytest.approx(0.9, abs=0.04)
    assert coverage(found.judged, widening_for(found.judged)) >= 0.9
    assert 0.75 < found.low < 0.9 < 1.1 < found.high < 1.25


def test_one_group_cannot_be_held_out() -> None:
    samples = [replace(sample, group="one") for sample in _samples(9, 0.1, (GIB, 0.1))]
    with pytest.raises(ValueError, match="two groups"):
        crossfit(samples)


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    written = Calibration(
        date="2026-11-22", sources=("fms-a100-main",), rows=40, coverage=0.9, median_error=0.03,
        device={"one GPU": FIT}, outcomes={"oom": {"fits": 0, "does not fit": 3}}, slack_share=0.15,
    )  # fmt: skip
    write(written, path)
    found = load_calibration(str(path))
    assert found == written
    assert found.fit_of("one GPU/hf/adapters") == FIT
    assert found.fit_of("several GPUs/full") is None


def test_the_projects_own_file() -> None:
    found = load_calibration()
    assert found.sources
    assert 0.88 <= found.coverage <= 0.93
    for fit in found.device.values():
        assert fit.rows >= 12
        assert fit.low < 1.1
        assert fit.high > 0.9


def test_the_slack_is_that_of_the_outcomes() -> None:
    assert 0 <= SLACK_SHARE - load_calibration().slack_share < 0.01


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        replace(FIT, churn_share=-0.1)
    with pytest.raises(ValueError, match="interval"):
        replace(FIT, low=1.2)


@pytest.mark.parametrize("options", [{}, {"gpus": 8, "zero": 2}, {"method": "qlora"}])
def test_a_reading_holds_what_is_allocated(options: dict[str, object]) -> None:
    found = plan("llama-2-7b", checkpointing="full", **options)
    reading = device_reading(found.config, found.memory)
    assert reading is not None
    assert found.memory.allocated_bytes <= reading.low <= reading.bytes <= reading.high
    assert reading.bytes > found.memory.allocated_bytes
    assert stratum_of(found.config).startswith("one GPU" if len(options) < 2 else "several")


@pytest.mark.parametrize("options", [{"zero": 2}, {"engine": "fsdp1", "fsdp": "full-shard"}])
def test_a_process_and_its_group_of_ranks_have_a_fixed_part_each(
    options: dict[str, object],
) -> None:
    found = plan("tinyllama-1.1b", gpus=8, seq_len=512, **options)
    fit, memory = load_calibration().fit_of(stratum_of(found.config)), found.memory
    reading = device_reading(found.config, memory)
    assert fit is not None
    assert reading is not None
    held = memory.reserved_bytes
    if held is None:  # a replay has shown what comes and goes
        held = memory.allocated_bytes + round(fit.churn_share * churn_bytes(memory))
    assert reading.bytes == pytest.approx(held + outside_bytes(memory) + 2 * fit.fixed_bytes, abs=2)


def test_a_full_card_ends_the_reading() -> None:
    found = plan("llama-2-7b", checkpointing="full")
    card = find_gpu("a100-80gb-sxm")
    reading = device_reading(replace(found.config, gpu=card), found.memory)
    assert reading is not None
    assert reading.high <= max(card.usable_bytes, found.memory.allocated_bytes)


def test_readings_that_count() -> None:
    found = validate(islice(read_rows(), 12))
    readings = samples(found.comparisons)
    assert readings
    for reading in readings:
        assert reading.source == "fms-a100-main"
        assert reading.sample.base > 0
        assert reading.sample.measured < 0.9 * 80 * GIB
    names = {one.row.id for one in found.comparisons if one.metric == "device_used_bytes"}
    assert len(readings) < len(names), "full fine-tunes of 7B fill an 80-GB card: censored"
