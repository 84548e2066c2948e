"""Dollars, hours and kilowatt-hours from the time of a step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.planner import plan
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed.cost import HOURS_PER_MONTH, Workload, cost_of
from vram_plan.profiles.gpus import find_gpu, load_gpus
from vram_plan.profiles.models import resolve_model


@dataclass(frozen=True)
class Step:
    """A step of which only the speed matters."""

    tokens_per_second: float = 20_000.0


def config(gpu: str = "a100-80gb-sxm", **options: object) -> TrainConfig:
    return resolve(resolve_model("llama-2-7b"), {"gpus": 8, **options, "gpu": find_gpu(gpu)})


def cost(workload: Workload | None = None, gpu: str = "a100-80gb-sxm", **options: object):  # type: ignore[no-untyped-def]
    return cost_of(config(gpu, **options), Step(), workload)  # type: ignore[arg-type]


def test_rent_is_the_catalogues_with_its_day() -> None:
    found, price = cost(), load_gpus()["a100-80gb-sxm"].rental_usd_per_hour
    assert price is not None
    assert found.usd_per_hour == 8 * price.usd
    assert found.usd_per_million_tokens == pytest.approx(8 * price.usd / 3600 / 20_000 * 1e6)
    assert price.date in found.price_source
    assert (found.tokens, found.hours, found.usd, found.kwh) == (None, None, None, None)


def test_a_whole_run() -> None:
    """1.44·10⁹ tokens at 20,000 a second: 20 hours of eight GPUs of 400 W."""
    found = cost(Workload(tokens=1.44e9, usd_per_gpu_hour=2.0, usd_per_kwh=0.2, pue=1.25))
    assert found.hours == pytest.approx(20)
    assert found.usd == pytest.approx(20 * 8 * 2)
    assert found.kwh == pytest.approx(8 * 0.4 * 20 * 1.25)
    assert found.usd_power == pytest.approx(found.kwh * 0.2)
    assert found.price_source == "--usd-per-gpu-hour"


def test_samples_are_sequences_of_the_plan() -> None:
    run = config(seq_len=1000)
    assert Workload(samples=500, epochs=3).total_tokens(run) == 1.5e6
    assert Workload(tokens=500, epochs=3).total_tokens(run) == 1500
    assert Workload().total_tokens(run) is None


def test_buying_pays_when_rent_less_power_has_paid_the_price() -> None:
    given = Workload(usd_per_gpu_hour=2.0, purchase_usd=19_000, usd_per_kwh=0.25, utilization=0.5)
    even = cost(given).break_even
    assert even.busy_hours == pytest.approx(19_000 / (2.0 - 0.4 * 0.25))
    assert even.months == pytest.approx(even.busy_hours / 0.5 / HOURS_PER_MONTH)


def test_buying_never_pays_where_power_costs_more_than_rent() -> None:
    given = Workload(usd_per_gpu_hour=0.05, purchase_usd=10_000, usd_per_kwh=1.0)
    even = cost(given).break_even
    assert (even.busy_hours, even.months) == (None, None)


def test_launch_prices_are_the_default_purchase() -> None:
    even = cost(gpu="rtx-4090-24gb", precision="bf16").break_even
    assert even.purchase_usd == 1599
    assert "2022" in even.source


def test_what_is_not_known_is_none_and_said() -> None:
    name = next(
        spec.name
        for spec in load_gpus().values()
        if spec.rental_usd_per_hour is None and spec.supports_bf16
    )
    found = cost(Workload(tokens=1e9), gpu=name)
    assert found.usd_per_hour is None
    assert found.usd_per_million_tokens is None
    assert found.usd is None
    assert found.break_even is None
    assert any("--usd-per-gpu-hour" in note for note in found.notes)


def test_no_cost_without_a_gpu_or_a_step() -> None:
    assert plan("gpt2").cost is None
    assert cost_of(config(), None) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tokens": -1.0}, "--tokens must be positive"),
        ({"utilization": 0.0}, "--utilization"),
        ({"utilization": 1.5}, "--utilization"),
        ({"pue": 0.9}, "--pue"),
        ({"usd_per_kwh": -0.1}, "--usd-per-kwh"),
        ({"usd_per_gpu_hour": 0.0}, "--usd-per-gpu-hour"),
        ({"tokens": 1.0, "samples": 1.0}, "give one"),
    ],
)
def test_nonsense_is_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Workload(**values)
