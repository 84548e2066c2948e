"""The sampler: the host for real, NVML through a stand-in with its real names and errors."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vram_plan.bench.runs.nvml import Gpu, NoNvmlError, every_gpu
from vram_plan.bench.runs.sampler import Sampler, columns, resident_bytes, tree


class Nvml:
    """NVML as a driver of an A100 answers it; ``silent`` names what is not supported."""

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """The library's own error."""

    def __init__(self, *silent: str) -> None:
        self.silent = silent
        self.__dict__["nvmlMemory_v2"] = 0x02000028

    def __getattr__(self, name: str) -> Any:
        def answer(*args: Any, **keywords: Any) -> Any:
            if name in self.silent:
                raise self.NVMLError(f"{name}: Not Supported")
            memory = SimpleNamespace(total=80 * 2**30, used=3 * 2**30, free=77 * 2**30)
            if keywords:
                memory.reserved = 600 * 2**20
            return {
                "nvmlDeviceGetUUID": b"GPU-1",
                "nvmlDeviceGetName": "NVIDIA A100-SXM4-80GB",
                "nvmlDeviceGetMemoryInfo": memory,
                "nvmlDeviceGetPowerUsage": 61_500,
                "nvmlDeviceGetTotalEnergyConsumption": 1_000_000,
                "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40),
                "nvmlDeviceGetComputeRunningProcesses": [
                    SimpleNamespace(pid=7, usedGpuMemory=2**30)
                ],
            }.get(name, 1)

        return answer


def test_a_gpu_in_plain_units() -> None:
    gpu = Gpu("GPU-1", nvml=Nvml())
    seen = gpu.sample({7})
    assert gpu.facts["name"] == "NVIDIA A100-SXM4-80GB"
    assert seen["used_bytes"] == 3 * 2**30
    assert seen["driver_reserved_bytes"] == 600 * 2**20
    assert seen["process_bytes"] == 2**30
    assert seen["power_watts"] == pytest.approx(61.5)
    assert seen["energy_joules"] == pytest.approx(1000.0)
    assert seen["gpu_percent"] == 97


def test_what_a_gpu_does_not_say_is_none() -> None:
    silent = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates")
    seen = Gpu(nvml=Nvml(*silent)).sample({8})
    assert seen["used_bytes"] is None
    assert seen["power_watts"] is None
    assert seen["gpu_percent"] is None
    assert seen["process_bytes"] is None


def test_no_driver_is_told() -> None:
    with pytest.raises(NoNvmlError, match="nvmlInit"):
        Gpu(nvml=Nvml("nvmlInit"))


def test_a_process_is_sampled_until_it_ends(tmp_path: Path) -> None:
    work = "import time; held = bytearray(64 * 2**20); time.sleep(30)"
    worker = subprocess.Popen([sys.executable, "-c", work])
    try:
        sampler = Sampler(worker.pid, tmp_path, hertz=20)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            rows = columns(tmp_path / "samples.jsonl").get("columns", {}).get("host_bytes", [])
            if rows and (rows[-1] or 0) > 64 * 2**20:
                break
            time.sleep(0.1)
        seen = sampler.stop()
    finally:
        worker.kill()
        worker.wait()
    assert seen["gpu"] is None
    assert seen["gpu_reason"] == "the run uses no GPU"
    assert max(seen["columns"]["host_bytes"]) > 64 * 2**20
    assert seen["columns"]["seconds"] == sorted(seen["columns"]["seconds"])


def test_a_gpu_that_is_not_there_is_told(tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        sampler = Sampler(worker.pid, tmp_path, uuids=["GPU-none"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not columns(sampler.path).get("columns"):
            time.sleep(0.1)
        seen = sampler.stop()
    finally:
        worker.kill()
        worker.wait()
    assert seen["gpu"] is None
    assert seen["gpu_reason"]


_NODE = """
from types import SimpleNamespace as Facts
NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, nvmlMemory_v2 = 1, 0, 2
class NVMLError(Exception): ...
def nvmlInit(): ...
def nvmlShutdown(): ...
def nvmlDeviceGetHandleByUUID(uuid):
    if uuid == "GPU-lost":
        raise NVMLError("GPU is lost")
    return int(uuid.removeprefix("GPU-"))
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}"
def nvmlDeviceGetMemoryInfo(handle, version=None):
    return Facts(total=80, used=10 + handle, free=70 - handle, reserved=1)
def __getattr__(name):
    if not name.startswith("nvml"):
        raise AttributeError(name)
    def silent(*given, **named):
        raise NVMLError("Not Supported")
    return silent
"""
"""NVML of a machine with several GPUs, for a process of its own: each holds what its name says."""


def test_every_gpu_of_a_run_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real sampler asks all GPUs that it is told of; one that is lost is told, not fatal."""
    (tmp_path / "pynvml.py").write_text(_NODE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        sampler = Sampler(worker.pid, tmp_path, uuids=["GPU-3", "GPU-lost", "GPU-5"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not columns(sampler.path).get("columns"):
            time.sleep(0.1)
        seen = sampler.stop()
    finally:
        worker.kill()
        worker.wait()
    assert seen["gpu"]["uuid"] == "GPU-3"
    assert [facts and facts["uuid"] for facts in seen["gpus"]] == ["GPU-3", None, "GPU-5"]
    assert seen["gpu_reason"] == "GPU is lost"
    assert set(seen["columns"]["used_bytes"]) == {13}
    assert set(seen["columns"]["gpu2_used_bytes"]) == {15}
    assert "gpu1_used_bytes" not in seen["columns"]


def test_all_gpus_of_a_machine() -> None:
    class Node(Nvml):
        def __getattr__(self, name: str) -> Any:
            if name == "nvmlDeviceGetCount" and name not in self.silent:
                return lambda: 3
            return super().__getattr__(name)

    assert len(every_gpu(Node())) == 3
    assert len(every_gpu(Node("nvmlDeviceGetCount"))) == 1


def test_damage_and_absence_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert columns(path) == {"columns": {}}
    path.write_text('{"hertz": 10}\n{"seconds": 1, "host_bytes": 5}\n{"seconds": 2, "ho')
    assert columns(path) == {"hertz": 10, "columns": {"seconds": [1], "host_bytes": [5]}}
    assert tree(2**22 + 1) == set()
    assert resident_bytes([2**22 + 1]) is None
    with pytest.raises(ValueError, match="hertz"):
        Sampler(1, tmp_path, hertz=0)
