"""Stored runs beside their predictions, and what a run says of itself."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vram_plan.bench.runs.boundary import expanded, largest_batch
from vram_plan.bench.runs.calibrated import calibrated_seconds
from vram_plan.bench.runs.compare import boundaries, comparison
from vram_plan.bench.runs.failures import Failure
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.launch import Ended
from vram_plan.bench.runs.record import measurement_of
from vram_plan.bench.runs.steadiness import verdict
from vram_plan.bench.runs.window import timed_window
from vram_plan.profiles.efficiency import curves_of, load_curves
from vram_plan.profiles.gpus import find_gpu
from vram_plan.profiles.machine import THIS, Machine, this_file, write_machine

OOM = Failure(outcome="oom", message="CUDA out of memory", whose="torch", requested_bytes=2**30)


def document(job: Job, failure: Failure | None = None, **seen: Any) -> dict[str, Any]:
    result = {"instants": {"loss": 2**30}, "step_seconds": [0.3, 0.1, 0.2], "losses": [2.0, 1.0]}
    ended = Ended(
        result=result | seen if failure is None else None,
        failure=failure,
        stage="step",
        seconds=1.0,
        log="",
    )
    return measurement_of(job, job.predict(), ended).to_document()


def test_errors_by_instant_and_component() -> None:
    job = Job(model="gpt2", layers=2, options={"seq_len": 32})
    memory = job.predict().memory
    weights = memory.components["weights"]
    instants = {
        "forward": memory.instants["forward"],
        "backward": memory.instants["embedding_backward"],
        "optimizer_step": memory.instants["optimizer_step"] // 2,
    }
    states = {"weights": weights * 2}
    found = comparison([document(job, instants=instants, states=states)])
    (run,) = found["runs"]
    assert run["instants"]["forward"]["error"] == 0.0
    assert run["instants"]["optimizer_step"]["error"] == pytest.approx(1.0)
    assert run["instants"]["backward"]["predicted"] == max(
        memory.instants[name] for name in memory.instants if "backward" in name
    )
    assert run["components"]["weights"]["error"] == pytest.approx(-0.5)
    assert run["step"] == {"measured": 0.2, "predicted": None, "error": None}
    assert found["summary"]["allocated"]["n"] == 1
    assert found["summary"]["step"]["n"] == 0


def test_a_full_gpu_speaks_against_its_figures() -> None:
    found = document(Job(model="gpt2", layers=2, options={"seq_len": 8}), alloc_retries=2)
    assert any("memory was full" in reason for reason in found["run"]["verdict"]["reasons"])


def test_where_host_and_device_are_one_nothing_is_compared() -> None:
    job = Job(model="gpt2", layers=2, options={"seq_len": 32, "zero": 2, "offload": "optimizer"})
    found = comparison([document(job)])
    assert found["runs"][0]["allocated"]["error"] is None
    assert found["summary"]["allocated"]["n"] == 0
    assert "one memory" in found["runs"][0]["notes"][0]


CPU_OPTIONS = {"seq_len": 32, "attention": "eager", "precision": "fp32", "weights_dtype": "fp32"}


def test_the_profile_of_this_machine_predicts_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a CPU for runs on a CPU; one of another device is not used."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    job = Job(model="gpt2", layers=2, options=CPU_OPTIONS)

    def predicted(**changes: Any) -> Any:
        card = replace(find_gpu("a100-80gb-sxm"), name=THIS, rental_usd_per_hour=None)
        gpu = replace(card, kind="workstation", purchase_usd=None, **changes)
        curves = replace(load_curves()[0], name=THIS)
        write_machine(Machine(gpu=gpu, curves=curves), this_file())
        curves_of.cache_clear()
        return comparison([document(job)])["runs"][0]

    run = predicted(architecture="CPU")
    assert run["step"]["predicted"] > 0
    assert run["step"]["error"] is not None
    assert "profile" in run["notes"][0]
    assert predicted()["step"]["predicted"] is None
    assert Job(model="gpt2", device="cuda", options={"gpu": THIS}).predict().config.gpu is None

    a100, l4 = Job(model="gpt2", device="cuda"), find_gpu("l4").name
    config = a100.predict().config
    assert calibrated_seconds(config, "cuda", "a100-80gb-sxm") is not None
    assert calibrated_seconds(config, "cuda", l4) is None
    assert calibrated_seconds(config, "cuda", None) is None


def test_the_boundary_that_was_found() -> None:
    def run(size: int, failure: Failure | None, fits: bool) -> dict[str, Any]:
        options = {"seq_len": 32, "micro_batch": size}
        found = document(Job(model="gpt2", layers=2, options=options), failure)
        found["plan"]["fits"] = fits
        return found

    runs = [run(1, None, True), run(2, None, False), run(3, OOM, True), run(4, OOM, False)]
    (found,) = boundaries(runs)
    assert found["largest_ok"] == 2
    assert found["smallest_oom"] == 3
    assert found["predicted"] == 3
    assert found["wrongly_fits"] == [3]
    assert found["wrongly_refused"] == [2]
    assert boundaries(runs[:1]) == []
    assert comparison(runs)["runs"][2]["outcome"] == "oom"


def test_a_boundary_is_the_largest_batch_and_the_next() -> None:
    options = {"micro_batch": "boundary", "seq_len": 1024, "method": "lora"}
    job = Job(model="llama-3.2-1b", options=options, device="cuda")
    sizes = [one.options["micro_batch"] for one in expanded([job], "rtx-4090-24gb")]
    assert sizes == [sizes[0], sizes[0] + 1]
    fits = [
        Job(model=job.model, options={**options, "micro_batch": size}, device="cuda")
        .predict("rtx-4090-24gb")
        .fits[0]
        .fits
        for size in sizes
    ]
    assert fits == [True, False]
    assert largest_batch(Job(model="llama-3.1-8b", options={}), "rtx-4090-24gb") == 0
    with pytest.raises(ValueError, match="no GPU of the catalogue"):
        list(expanded([job], None))


@pytest.mark.parametrize(
    ("seconds", "warm", "steady"),
    [
        ([1.0] * 24, True, True),
        ([1.0, 1.001] * 12, True, True),
        ([2.0] * 6 + [1.0] * 20, False, True),
        ([1.0 + 0.002 * n for n in range(24)], True, False),
        ([1.0, 1.2] * 12, True, False),
        ([1.0] * 5, True, None),
        ([1.0], None, None),
    ],
)
def test_a_run_judges_itself(seconds: list[float], warm: bool, steady: bool) -> None:
    found = verdict(seconds, [2.0, 1.0])
    assert found["warm"] is warm
    assert found["steady"] is steady
    assert found["loss_fell"] is True
    assert bool(found["reasons"]) is not (warm is True and steady is True)


def test_a_loss_that_did_not_fall_is_told() -> None:
    found = verdict([], [1.0, 1.5])
    assert found["loss_fell"] is False
    assert "1 to 1.5" in found["reasons"][0]
    assert verdict([], [])["loss_fell"] is None
    lost = document(Job(model="gpt2", layers=2, options={"seq_len": 8}), losses=[1.0, math.nan])
    assert lost["losses"] == []
    assert lost["run"]["verdict"]["loss_fell"] is False


def test_samples_are_cut_to_the_timed_steps() -> None:
    """Two watched steps, one to warm up, two timed: from 113 to 115 on the clock."""
    stages = [("load", 0), *(("step", 10 + n) for n in range(5)), ("done", 15), ("save", 16)]
    marks = [{"stage": stage, "at": 100.0 + at} for stage, at in stages]
    columns = {
        "seconds": [float(n) for n in range(20)],
        "power_watts": [100.0] * 8 + [700.0] * 4 + [None] * 8,
        "energy_joules": [10.0 * n for n in range(20)],
        "throttle_reasons": [0x4] * 9 + [0x40] + [0] * 10,
        "gpu_percent": [None] * 20,
    }
    found = timed_window({"started": 105.0, "columns": columns}, marks, 1, 2)
    assert found is not None
    assert found["seconds"] == 2.0  # 8 to 10 s after the sampler began
    assert found["samples"] == 3
    assert found["power_watts"] == 700.0
    assert found["joules"] == 20.0
    assert found["slowed_share"] == pytest.approx(1 / 3)
    assert found["throttled"] is True
    assert found["gpu_percent"] is None
    others = {
        "gpu1_energy_joules": [5.0 * n for n in range(20)],
        "gpu1_throttle_reasons": [0x40] * 20,
        "gpu1_power_watts": [1.0] * 20,
    }
    node = timed_window({"started": 105.0, "columns": columns | others}, marks, 1, 2)
    assert node is not None
    assert (node["joules"], node["slowed_share"], node["power_watts"]) == (30.0, 1.0, 700.0)
    lost = {"started": 105.0, "columns": columns, "gpus": [{"uuid": "GPU-1"}, None]}
    assert (timed_window(lost, marks, 1, 2) or {})["joules"] is None
    assert timed_window(None, marks, 1, 2) is None
    assert timed_window({"started": 105.0, "columns": {}}, marks[:2], 1, 2) is None
