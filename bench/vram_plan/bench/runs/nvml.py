"""The only place that talks to NVML; what a GPU or a container does not say is None.

Bindings: nvidia-ml-py (module ``pynvml``). A GPU is named by its UUID, since NVML counts devices
by PCI address and CUDA by speed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

__all__ = ["Gpu", "NoNvmlError", "every_gpu"]


class NoNvmlError(Exception):
    """NVML cannot be used here; the message says why."""


class Gpu:
    """One GPU, open for reading.

    Attributes:
        uuid: its name.
        facts: what does not change: product name, memory, driver, power limit, MIG mode.
    """

    def __init__(self, uuid: str | None = None, nvml: Any = None) -> None:
        self._nvml = nvml if nvml is not None else _library()
        try:
            self._nvml.nvmlInit()
            self._handle = (
                self._nvml.nvmlDeviceGetHandleByUUID(uuid)
                if uuid
                else self._nvml.nvmlDeviceGetHandleByIndex(0)
            )
        except self._nvml.NVMLError as error:
            raise NoNvmlError(str(error)) from None
        self.uuid = self._ask("nvmlDeviceGetUUID")
        self.facts = {
            "name": self._ask("nvmlDeviceGetName"),
            "uuid": self.uuid,
            "driver": self._plain(lambda: self._nvml.nvmlSystemGetDriverVersion()),
            "memory": self._memory(),
            "power_limit_watts": _scaled(self._ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            "mig": self._ask("nvmlDeviceGetMigMode"),
        }

    def sample(self, pids: Collection[int] = ()) -> dict[str, Any]:
        """What it does now: bytes, watts, joules, megahertz, degrees, shares in percent."""
        memory = self._memory() or {}
        use = self._ask("nvmlDeviceGetUtilizationRates")
        clock = self._nvml.NVML_CLOCK_SM
        return {
            "used_bytes": memory.get("used"),
            "driver_reserved_bytes": memory.get("reserved"),
            "process_bytes": self._process_bytes(pids),
            "gpu_percent": getattr(use, "gpu", None),
            "power_watts": _scaled(self._ask("nvmlDeviceGetPowerUsage"), 1e-3),
            "energy_joules": _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3),
            "sm_megahertz": self._plain(
                lambda: self._nvml.nvmlDeviceGetClockInfo(self._handle, clock)
            ),
            "celsius": self._plain(
                lambda: self._nvml.nvmlDeviceGetTemperature(
                    self._handle, self._nvml.NVML_TEMPERATURE_GPU
                )
            ),
            "throttle_reasons": self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        }

    def close(self) -> None:
        """Let go of the library."""
        self._plain(lambda: self._nvml.nvmlShutdown())

    def _memory(self) -> dict[str, int] | None:
        """Version 2 keeps the driver's own share apart; older drivers know version 1 alone."""
        found = self._plain(
            lambda: self._nvml.nvmlDeviceGetMemoryInfo(
                self._handle, version=self._nvml.nvmlMemory_v2
            )
        ) or self._ask("nvmlDeviceGetMemoryInfo")
        if found is None:
            return None
        names = ("total", "used", "free", "reserved")
        return {name: int(getattr(found, name)) for name in names if hasattr(found, name)}

    def processes(self) -> int | None:
        """How many processes compute on it; None where the driver does not tell."""
        found = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if found is None else len(found)

    def _process_bytes(self, pids: Collection[int]) -> int | None:
        """Bytes of a run's processes; None in containers that hide process numbers."""
        running = self._ask("nvmlDeviceGetComputeRunningProcesses") if pids else None
        seen = [one.usedGpuMemory for one in running or () if one.pid in pids]
        told = [size for size in seen if size is not None]
        return sum(told) if told else None

    def _ask(self, name: str) -> Any:
        return self._plain(lambda: getattr(self._nvml, name)(self._handle))

    def _plain(self, call: Callable[[], Any]) -> Any:
        try:
            found = call()
        except self._nvml.NVMLError:
            return None
        return found.decode() if isinstance(found, bytes) else found


def every_gpu(nvml: Any = None) -> list[Gpu]:
    """All GPUs of this machine, open for reading.

    Raises:
        NoNvmlError: if NVML cannot be used here.
    """
    library = nvml if nvml is not None else _library()
    first = Gpu(nvml=library)
    try:
        count = int(library.nvmlDeviceGetCount())
        handles = [library.nvmlDeviceGetHandleByIndex(number) for number in range(1, count)]
        names = [library.nvmlDeviceGetUUID(handle) for handle in handles]
    except library.NVMLError:
        return [first]
    return [first, *(Gpu(name, library) for name in names)]


def _library() -> Any:
    try:
        import pynvml
    except ImportError:
        raise NoNvmlError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
    return pynvml


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else value * factor
