"""Before a run and after it, on GPUs that stand in; and runs without what names a person."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vram_plan.bench.environment import commit, environment
from vram_plan.bench.runs import launch, preflight
from vram_plan.bench.runs.device import catalogue_name, gpu_uuid, gpu_uuids, named_gpu
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.nvml import Gpu, NoNvmlError
from vram_plan.bench.runs.preflight import after, before
from vram_plan.bench.runs.record import _device_bytes
from vram_plan.bench.runs.redact import redacted


class Stand:
    """A GPU whose readings a test sets."""

    def __init__(self, *used: int, processes: int = 0) -> None:
        self.used = list(used)
        self.count = processes

    def __call__(self, count: int) -> Any:
        return [self] * count

    def sample(self) -> dict[str, Any]:
        used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        return {"used_bytes": used, "sm_megahertz": 1410, "celsius": 40}

    def processes(self) -> int:
        return self.count

    def close(self) -> None: ...


def test_a_free_machine_is_described(tmp_path: Path) -> None:
    found = before("cuda", tmp_path / "not" / "there", Stand(10_000_000))
    assert found["refused"] is None
    assert found["used_bytes"] == 10_000_000
    assert found["sm_megahertz"] == 1410
    assert found["disk_free_bytes"] > 0
    assert before("cpu", tmp_path)["refused"] is None


def test_a_gpu_in_use_is_refused(tmp_path: Path) -> None:
    foreign = before("cuda", tmp_path, Stand(10_000_000, processes=2))
    assert "2 other processes" in foreign["refused"]
    held = before("cuda", tmp_path, Stand(3 * 2**30))
    assert "3,072 MiB of the GPU" in held["refused"]


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    assert "1 MiB are free" in before("cpu", tmp_path)["refused"]


def test_a_silent_driver_stops_nothing(tmp_path: Path) -> None:
    def none(count: int) -> list[Gpu]:
        raise NoNvmlError("no driver")

    found = before("cuda", tmp_path, none)
    assert found["refused"] is None
    assert found["gpu_reason"] == "no driver"
    assert after("cuda", found, none) == {"left_bytes": None}


def test_what_a_run_leaves_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is slow to give memory back is waited for, a leak is not."""
    monkeypatch.setattr(preflight, "_POLL_SECONDS", 0.0)
    found = {"used_bytes": 10_000_000}
    assert after("cuda", found, Stand(2**30, 2**30, 10_000_000)) == {"left_bytes": 0}
    monkeypatch.setattr(preflight, "_PATIENCE_SECONDS", 0.0)
    assert after("cuda", found, Stand(2**30)) == {"left_bytes": 2**30 - 10_000_000}
    assert after("cpu", found) == {"left_bytes": None}


def test_products_by_their_catalogue_name() -> None:
    assert catalogue_name("NVIDIA A100-SXM4-80GB") in {"a100-80gb-sxm", None}
    assert catalogue_name("NVIDIA GeForce RTX 4090") == "rtx-4090-24gb"
    assert catalogue_name("Some Other Card") is None


def test_the_gpus_are_asked_for_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(code: int, said: str) -> tuple[str, ...]:
        done = subprocess.CompletedProcess[str]([], code, said, "")
        monkeypatch.setattr("subprocess.run", lambda *given, **named: done)
        gpu_uuids.cache_clear()
        return gpu_uuids()

    try:
        assert answers(0, "a library's noise\nGPU-1\nGPU-2\n") == ("GPU-1", "GPU-2")
        assert gpu_uuid() == "GPU-1"
        assert answers(1, "") == ()
        assert gpu_uuid() is None
        assert named_gpu("cpu") is None
    finally:
        gpu_uuids.cache_clear()


def stands(*each: Stand) -> Any:
    """A machine with these GPUs."""
    return lambda count: each[:count]


def test_every_gpu_of_a_run_is_looked_at(tmp_path: Path) -> None:
    free, busy = Stand(10_000_000), Stand(20_000_000, processes=1)
    found = before("cuda", tmp_path, stands(free, free), gpus=2)
    assert found["refused"] is None
    assert found["used_bytes"] == 10_000_000
    assert [one["used_bytes"] for one in found["gpus"]] == [10_000_000] * 2
    assert "1 other processes are on GPU 1" in str(
        before("cuda", tmp_path, stands(free, busy), gpus=2)["refused"]
    )
    assert before("cuda", tmp_path, stands(free, busy))["refused"] is None
    assert "3,072 MiB of GPU 1 are in use" in str(
        before("cuda", tmp_path, stands(free, Stand(3 * 2**30)), gpus=2)["refused"]
    )
    assert before("cuda", tmp_path, stands(free), gpus=4)["refused"] == (
        "the run takes 4 GPUs of this machine, PyTorch sees 1"
    )


@pytest.mark.parametrize(
    ("options", "ranks", "taken"),
    [
        ({}, "real", 1),
        ({"gpus": 4, "engine": "ddp"}, "real", 4),
        ({"gpus": 16, "zero": 2}, "real", 8),
        ({"gpus": 8, "zero": 2}, "virtual:8", 1),
    ],
)
def test_a_run_is_sampled_on_the_gpus_it_takes(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], ranks: str, taken: int
) -> None:
    """Rank N of a machine takes PyTorch's N-th GPU; other machines have their own sampler."""
    names = tuple(f"GPU-{number}" for number in range(8))
    monkeypatch.setattr(launch, "gpu_uuids", lambda: names)
    job = Job(model="gpt2", device="cuda", options={**options, "attention": "sdpa"}, ranks=ranks)
    assert launch._gpus(job, job.predict().config) == names[:taken]
    on_cpu = Job(model="gpt2", options=options, ranks=ranks)
    assert launch._gpus(on_cpu, job.predict().config) == ()


def test_the_fullest_gpu_is_the_reading() -> None:
    columns = {"used_bytes": [7, 9], "gpu1_used_bytes": [8, None], "gpu1_process_bytes": [5, 6]}
    assert _device_bytes({"columns": columns}) == 6
    assert _device_bytes({"columns": columns | {"gpu1_process_bytes": [None]}}) == 9
    assert _device_bytes(None) is None


def test_a_leak_on_any_gpu_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(preflight, "_PATIENCE_SECONDS", 0.0)
    clean, leaks = Stand(10_000_000), Stand(10_000_000, 2**30)
    found = before("cuda", tmp_path, stands(clean, leaks), gpus=2)
    left = after("cuda", found, stands(clean, leaks), gpus=2)
    assert left == {"left_bytes": 2**30 - 10_000_000}
    assert after("cuda", found, stands(clean), gpus=2) == {"left_bytes": None}


def test_nothing_personal_is_left_in_a_run() -> None:
    document = {
        "outcome": "error",
        "error": "FileNotFoundError: /home/anna/models/secret/config.json, ask anna@firm.example",
        "model": {"name": "/srv/data/anna/my-model", "parameters": 7},
        "environment": {"libraries": {"torch": "2.13.0"}},
        "samples": {"gpu": {"uuid": "GPU-0a1b2c3d-1111-2222-3333-444455556666", "name": "A100"}},
        "failure": {"stage": "load", "log_tail": "anna@box:~$ secret"},
        "run": {
            "job": {"data": "C:\\Users\\anna\\d.jsonl"},
            "note": "host: box7 at 10.1.2.3:29500",
        },
        "memory": {"allocated_bytes": 123, "instants": {"loss": 5}},
    }
    text = json.dumps(redacted(document))
    for word in ("anna", "/home", "/srv", "box7", "10.1.2.3", "0a1b2c3d", "log_tail", "Users"):
        assert word not in text, word
    found = redacted(document)
    assert found["memory"] == document["memory"]
    assert found["model"]["name"] == "my-model"
    assert "config.json" in found["error"]
    assert found["environment"] == document["environment"]
    assert redacted(found) == found


def test_a_record_names_the_commit_that_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the folder where the run is started: the user's code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    commit.cache_clear()
    assert commit() is None
    for words in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *words], check=True)
    commit.cache_clear()
    try:
        assert len(commit() or "") == 40
        assert environment()["commit"] == commit()
    finally:
        commit.cache_clear()
