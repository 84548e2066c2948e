"""Calibration: from synthetic measurements back to what made them. Nothing here is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vram_plan.app.main import main
from vram_plan.bench.calibrate.check import FINE_TUNES, Checked
from vram_plan.bench.calibrate.fit import best_rate, fit_products, fit_steps
from vram_plan.bench.calibrate.micro import Product
from vram_plan.bench.calibrate.minimize import nelder_mead
from vram_plan.bench.calibrate.reference import Step, configured
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.efficiency import load_curves
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.machine import THIS, Machine, write_machine

GPU = find_gpu("a100-80gb-sxm")


def test_the_simplex_finds_a_valley() -> None:
    def valley(point: Sequence[float]) -> float:
        x, y = point
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    assert nelder_mead(valley, [-1.0, 1.0], step=0.5, evaluations=400) == pytest.approx(
        [1.0, 1.0], abs=1e-3
    )


def test_products_give_back_their_curve() -> None:
    peak = 1e11

    def product(rows: int, inner: int, columns: int) -> Product:
        flops = 2.0 * rows * inner * columns
        seconds = 5e-6 + flops * (1 + 40 / inner) / (0.8 * peak)
        return Product(rows=rows, inner=inner, columns=columns, dtype="fp32", seconds=seconds)

    found = [product(m, k, n) for m in (128, 1024) for k in (32, 256, 2048) for n in (64, 1024)]
    rates = fit_products(found, peak)
    assert rates.share == pytest.approx(0.8, rel=0.05)
    assert rates.inner == pytest.approx(40, rel=0.15)
    assert rates.seconds == pytest.approx(5e-6, rel=0.15)
    assert best_rate(found, "fp32") < 0.8 * peak


def test_steps_give_back_memory_and_launches() -> None:
    before = load_curves()[0]
    true = replace(before, memory=0.5, kernel_seconds=2e-5)
    steps = []
    for fields, options in list(FINE_TUNES.values())[:5]:
        config = replace(configured(fields, options, "cpu"), gpu=GPU)
        found = step_time(config, true)
        assert found is not None
        steps.append(Step(config=config, seconds=found.seconds))
    fitted = fit_steps(steps, GPU, before, ("memory", "kernel_seconds"))
    assert fitted.kernel_seconds == pytest.approx(2e-5, rel=0.1)
    for step in steps:
        found = step_time(step.config, fitted)
        assert found is not None
        assert found.seconds == pytest.approx(step.seconds, rel=0.05)


def test_a_dozen_fine_tunes_are_checked() -> None:
    assert len(FINE_TUNES) >= 10
    assert Checked(name="x", measured=2.0, predicted=1.5).error == -0.25


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


def test_the_command_line_plans_for_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "card.toml")
    gpu = replace(GPU, name=THIS, kind="workstation", rental_usd_per_hour=None, purchase_usd=None)
    write_machine(Machine(gpu=gpu, curves=replace(load_curves()[0], name=THIS)), path)
    told = ["--model", "llama-3.2-1b", "--calibration", path, "--format", "json"]
    assert run(told) == 0
    assert '"tokens_per_second"' in capsys.readouterr().out
    assert run([*told, "--gpu", "l4"]) == 2
    assert "leave --gpu out" in capsys.readouterr().err
