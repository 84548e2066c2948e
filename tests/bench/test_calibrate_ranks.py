"""Ranks that share a CPU: each has a thread, nothing is hidden, and they are run for real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vram_plan.bench.calibrate import machine as calibrating
from vram_plan.bench.calibrate.check_ranks import check_ranks
from vram_plan.bench.calibrate.collective_rank import KINDS
from vram_plan.estimator.rank import run_passes
from vram_plan.estimator.resolve import resolve
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.collective_rates import CollectiveRate, MeasuredLinks
from vram_plan.profiles.efficiency import load_curves
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.machine import THIS, Machine, read_machine, write_machine
from vram_plan.profiles.models import resolve_model

GPU = find_gpu("a100-80gb-sxm")


@pytest.mark.parametrize(
    ("device", "ranks", "told", "threads"),
    [("cpu", 1, None, 2), ("cpu", 2, None, 1), ("cpu", 2, "2", 2), ("cuda", 8, None, 2)],
)
def test_a_rank_of_a_cpu_has_the_threads_that_torchrun_gives_it(
    monkeypatch: pytest.MonkeyPatch, device: str, ranks: int, told: str | None, threads: int
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with calibrating.cores_of_a_rank(device, ranks):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_gradients_are_copied_into_buckets_and_out_again() -> None:
    """Read and written twice: four times the bytes of all gradients."""
    model = resolve_model("qwen2.5-0.5b")
    options = {"gpu": GPU, "gpus": 2, "engine": "ddp"}
    whole = resolve(model, options)
    found = step_time(whole)
    assert found is not None
    inventory = run_passes(whole, keeps_gradients=True).inventory
    nbytes = whole.weights_bytes * inventory.numel(trainable=True)
    moved = found.parts["communication: copies"] * GPU.memory_bandwidth_bytes_per_s
    assert moved == pytest.approx(4 * nbytes, rel=1e-6)
    frozen = step_time(resolve(model, options | {"method": "lora"}))
    assert frozen is not None
    assert frozen.parts["communication: copies"] < 0.1 * found.parts["communication: copies"]


@pytest.mark.parametrize("measured", [False, True])
def test_ranks_divide_a_processor_that_was_measured_whole(tmp_path: Path, measured: bool) -> None:
    """Twice as many ranks, each half as fast; not where a rank's own share was measured."""
    processor = replace(
        GPU,
        name=THIS,
        kind="workstation",
        architecture="CPU",
        rental_usd_per_hour=None,
        purchase_usd=None,
    )
    rate = CollectiveRate(kind="all-reduce", ranks=2, latency_seconds=0, bytes_per_s=1e15)
    links = MeasuredLinks(rates=(rate,)) if measured else None
    curves = replace(load_curves()[0], name=THIS, kernel_seconds=0.0, product_seconds=0.0)
    path = str(tmp_path / "machine.toml")
    write_machine(Machine(gpu=processor, curves=curves, links=links), path)
    card = read_machine(path).gpu
    parts = []
    for gpus in (1, 2):
        options = {"gpu": card, "gpus": gpus, "engine": "ddp"}
        found = step_time(resolve(resolve_model("qwen2.5-0.5b"), options), curves)
        assert found is not None
        parts.append(found.parts)
    for name in ("matrix products", "memory-bound operations", "optimizer step"):
        assert parts[1][name] == pytest.approx(parts[0][name] * (1 if measured else 2))


def test_two_real_ranks_are_run_beside_their_plan(
    monkeypatch: pytest.MonkeyPatch, own_processes: Callable[[], list[int]]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rates = tuple(
        CollectiveRate(kind=kind, ranks=2, latency_seconds=1e-4, bytes_per_s=1e9) for kind in KINDS
    )
    card = replace(GPU, name=THIS, kind="workstation", rental_usd_per_hour=None, purchase_usd=None)
    curves = replace(load_curves()[0], name=THIS)
    machine = Machine(gpu=card, curves=curves, links=MeasuredLinks(rates=rates))
    (found,) = check_ranks(machine, 2, ["llama deep"], 1)
    assert found.name == "llama deep"
    assert min(found.measured, found.predicted) > 0
    assert own_processes() == []
