"""The machine before a run and after it: is it free, and did the run give everything back.

What is found goes into the record; only a GPU that another process holds, or a full disk, stops a
run, since neither memory nor speed would be the configuration's own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.device import gpu_uuid
from vram_plan.bench.runs.nvml import Gpu, NoNvmlError

__all__ = ["after", "before"]

#: PEFT's benchmark refuses to start above 500 MB.
_FOREIGN_BYTES = 500_000_000
_DISK_BYTES = 256 * 2**20
_LEFT_BYTES = 250_000_000
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.5

Open = Callable[[], Gpu]


def _first() -> Gpu:
    """The GPU of rank 0."""
    return Gpu(gpu_uuid())


def before(device: str, store: Path, open_gpu: Open = _first) -> dict[str, Any]:
    """What is found before a run.

    Returns:
        ``host_free_bytes``, ``disk_free_bytes``, ``load``, and for a GPU ``used_bytes``,
        ``processes``, ``sm_megahertz``, ``celsius``; ``refused`` says why the run must not be
        made, else it is None.
    """
    place = next((one for one in (store, *store.absolute().parents) if one.exists()), Path.cwd())
    disk = min(shutil.disk_usage(one).free for one in (place, tempfile.gettempdir()))
    found: dict[str, Any] = {
        "host_free_bytes": _free_host(),
        "disk_free_bytes": disk,
        "load": os.getloadavg()[0],
        "refused": None,
    }
    if disk < _DISK_BYTES:
        found["refused"] = f"{disk // 2**20} MiB are free on the disk; runs need 256 MiB"
    if device == "cuda":
        found |= _gpu(open_gpu)
        found["refused"] = found["refused"] or _held(found)
    return found


def after(device: str, found: dict[str, Any], open_gpu: Open = _first) -> dict[str, Any]:
    """What a run has left behind: bytes of the GPU, once it had time to give them back."""
    if device != "cuda" or found.get("used_bytes") is None:
        return {"left_bytes": None}
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        used = _gpu(open_gpu)["used_bytes"]
        left = None if used is None else max(0, used - found["used_bytes"])
        if left is None or left <= _LEFT_BYTES or time.monotonic() > patience:
            return {"left_bytes": left}
        time.sleep(_POLL_SECONDS)


def _gpu(open_gpu: Open) -> dict[str, Any]:
    try:
        gpu = open_gpu()
    except NoNvmlError as error:
        return {"used_bytes": None, "gpu_reason": str(error)}
    seen = gpu.sample()
    found = {name: seen[name] for name in ("used_bytes", "sm_megahertz", "celsius")}
    found["processes"] = gpu.processes()
    gpu.close()
    return found


def _held(found: dict[str, Any]) -> str | None:
    """Why a GPU is not free; the driver's own memory is not counted by NVML's second version."""
    processes, used = found.get("processes"), found.get("used_bytes")
    if processes:
        return f"{processes} other processes are on the GPU; end them or choose another"
    if used is not None and used > _FOREIGN_BYTES:
        return f"{used / 2**20:,.0f} MiB of the GPU are in use; free them or choose another"
    return None


def _free_host() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes.get("MemAvailable")
