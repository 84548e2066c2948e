"""Before a run and after it, on GPUs that stand in; and runs without what names a person."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vram_plan.bench.runs import preflight
from vram_plan.bench.runs.device import catalogue_name, gpu_uuid, named_gpu
from vram_plan.bench.runs.nvml import Gpu, NoNvmlError
from vram_plan.bench.runs.preflight import after, before
from vram_plan.bench.runs.redact import redacted


class Stand:
    """A GPU whose readings a test sets."""

    def __init__(self, *used: int, processes: int = 0) -> None:
        self.used = list(used)
        self.count = processes

    def __call__(self) -> Any:
        return self

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
    def none() -> Gpu:
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


def test_the_gpu_is_asked_for_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(code: int, said: str) -> str | None:
        done = subprocess.CompletedProcess[str]([], code, said, "")
        monkeypatch.setattr("subprocess.run", lambda *given, **named: done)
        gpu_uuid.cache_clear()
        return gpu_uuid()

    try:
        assert answers(0, "a library's noise\nGPU-1\n") == "GPU-1"
        assert answers(1, "") is None
        assert named_gpu("cpu") is None
    finally:
        gpu_uuid.cache_clear()


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
