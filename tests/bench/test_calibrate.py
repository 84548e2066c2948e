"""Calibration: from synthetic measurements back to what made them. Nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vram_plan.app.main import main
from vram_plan.bench.calibrate import machine as calibrating
from vram_plan.bench.calibrate.check import FINE_TUNES, Checked
from vram_plan.bench.calibrate.collective_rank import KINDS, group_sizes
from vram_plan.bench.calibrate.collectives import fit_links, measure_links, timings
from vram_plan.bench.calibrate.fit import best_rate, fit_products, fit_steps
from vram_plan.bench.calibrate.micro import Product
from vram_plan.bench.calibrate.minimize import nelder_mead
from vram_plan.bench.calibrate.reference import Step, configured
from vram_plan.estimator.speed.collectives import sent_bytes
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.collective_rates import CollectiveRate, MeasuredLinks
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


def test_timings_give_back_latency_and_rate() -> None:
    rows = [
        {
            "kind": kind,
            "ranks": ranks,
            "bytes": nbytes,
            "seconds": 3e-5 * ranks + sent_bytes(kind, nbytes, ranks) / 2e11,
        }
        for kind in KINDS
        for ranks in (2, 8)
        for nbytes in (32 * 2**10, 2**20, 2**24, 2**28)
    ]
    rows[0]["seconds"] = 1.0  # something else ran: a larger message was quicker
    found = fit_links(rows)
    assert len(found.rates) == 10
    for one in found.rates:
        assert one.latency_seconds == pytest.approx(3e-5 * one.ranks, rel=0.02)
        assert one.bytes_per_s == pytest.approx(2e11, rel=0.02)


def test_groups_of_a_machine() -> None:
    assert [group_sizes(ranks) for ranks in (2, 4, 6, 8)] == [[2], [2, 4], [2, 4, 6], [2, 4, 8]]


def test_two_real_ranks_are_timed(
    monkeypatch: pytest.MonkeyPatch, own_processes: Callable[[], list[int]]
) -> None:
    """gloo between two processes of this computer: every collective, and nothing is left."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = measure_links("cpu", 2)
    assert {one.kind for one in found.rates} == set(KINDS)
    assert {one.ranks for one in found.rates} == {2}
    assert own_processes() == []


def test_ranks_that_cannot_meet_are_ended(own_processes: Callable[[], list[int]]) -> None:
    with pytest.raises(ValueError, match=r"collectives between 2 ranks: rank \d failed: .*one of"):
        timings("gpu-of-tomorrow", 2)
    with pytest.raises(ValueError, match=r"not finished after 0\.2 s"):
        timings("cpu", 2, limit=0.2)
    assert own_processes() == []


@pytest.mark.parametrize(("ranks", "measured"), [(None, False), (1, False), (2, True)])
def test_a_cpu_is_one_rank_unless_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, ranks: int | None, measured: bool
) -> None:
    links = MeasuredLinks(rates=())
    monkeypatch.setattr(calibrating, "measure_links", lambda device, ranks: links)
    heard: list[str] = []
    found = calibrating._links("cpu", ranks, heard.append)
    assert (found is links) == measured
    assert bool(heard) == measured


def test_failed_collectives_do_not_lose_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: str, ranks: int) -> MeasuredLinks:
        raise ValueError("rank 1 failed: no network")

    monkeypatch.setattr(calibrating, "measure_links", fail)
    heard: list[str] = []
    assert calibrating._links("cuda", 8, heard.append) is None
    assert "rank 1 failed: no network" in heard[-1]


def test_a_plan_counts_with_measured_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the latency and half the rate: the all-reduce of DDP takes twice as long."""
    gpu = replace(GPU, name=THIS, kind="workstation", rental_usd_per_hour=None, purchase_usd=None)
    curves = replace(load_curves()[0], name=THIS, contention=1.0)  # nothing is hidden

    def exchanged(latency: float, rate: float) -> float:
        links = MeasuredLinks(
            rates=(
                CollectiveRate(
                    kind="all-reduce", ranks=2, latency_seconds=latency, bytes_per_s=rate
                ),
            )
        )
        path = str(tmp_path / f"{rate:g}.toml")
        write_machine(Machine(gpu=gpu, curves=curves, links=links), path)
        told = ["--model", "llama-3.2-1b", "--gpus", "2", "--calibration", path]
        assert run([*told, "--format", "json"]) == 0
        parts: dict[str, float] = json.loads(capsys.readouterr().out)["step"]["parts"]
        return parts["communication_all_reduce"]

    assert exchanged(2e-4, 1e10) == pytest.approx(2 * exchanged(1e-4, 2e10))
