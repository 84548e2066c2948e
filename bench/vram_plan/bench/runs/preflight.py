"""The machine before a run and after it: is it free, and did the run give everything back.

Every GPU that the run takes on this machine is looked at. What is found goes into the record; only
one that another process holds or that is missing, or a full disk, stops a run, since neither memory
nor speed would be the configuration's own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.device import gpu_uuids
from vram_plan.bench.runs.nvml import Gpu, NoNvmlError

__all__ = ["after", "before"]

#: PEFT's benchmark refuses to start above 500 MB.
_FOREIGN_BYTES = 500_000_000
_DISK_BYTES = 256 * 2**20
_LEFT_BYTES = 250_000_000
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.5

Open = Callable[[int], Sequence[Gpu]]
_KEPT = ("used_bytes", "sm_megahertz", "celsius")


def _named(count: int) -> Sequence[Gpu]:
    """The GPUs that so many ranks of this machine will take.

    Raises:
        NoNvmlError: if one of them cannot be asked.
    """
    names = gpu_uuids()[:count]
    return [Gpu(name) for name in names] if names else [Gpu()]


def before(device: str, store: Path, open_gpus: Open = _named, *, gpus: int = 1) -> dict[str, Any]:
    """What is found before a run on the first ``gpus`` GPUs of this machine.

    Returns:
        ``host_free_bytes``, ``disk_free_bytes``, ``load``, and for the first GPU ``used_bytes``,
        ``processes``, ``sm_megahertz``, ``celsius``; where there are several, ``gpus`` has each
        one's; ``refused`` says why the run must not be made, else it is None.
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
        seen = _readings(open_gpus, gpus)
        found |= seen[0] | ({"gpus": seen} if len(seen) > 1 else {})
        found["refused"] = found["refused"] or _none_free(seen, gpus)
    return found


def after(
    device: str, found: dict[str, Any], open_gpus: Open = _named, *, gpus: int = 1
) -> dict[str, Any]:
    """What a run has left behind: bytes of the fullest GPU, once it had time to give them back."""
    held = [one["used_bytes"] for one in found.get("gpus", [found]) if "used_bytes" in one]
    if device != "cuda" or not held or None in held:
        return {"left_bytes": None}
    patience = time.monotonic() + _PATIENCE_SECONDS
    while True:
        left = _more([one["used_bytes"] for one in _readings(open_gpus, gpus)], held)
        if left is None or left <= _LEFT_BYTES or time.monotonic() > patience:
            return {"left_bytes": left}
        time.sleep(_POLL_SECONDS)


def _more(used: Sequence[int | None], held: Sequence[int]) -> int | None:
    """The most that a GPU holds beyond what it held before; None where one does not tell."""
    if len(used) != len(held):
        return None
    left = [now - then for now, then in zip(used, held, strict=True) if now is not None]
    return max(0, *left) if len(left) == len(held) else None


def _readings(open_gpus: Open, count: int) -> list[dict[str, Any]]:
    """What every GPU says; one without figures where NVML does not work."""
    try:
        opened = open_gpus(count)
    except NoNvmlError as error:
        return [{"used_bytes": None, "gpu_reason": str(error)}]
    found = []
    for gpu in opened:
        seen = gpu.sample()
        found.append({name: seen[name] for name in _KEPT} | {"processes": gpu.processes()})
        gpu.close()
    return found


def _none_free(seen: Sequence[dict[str, Any]], count: int) -> str | None:
    """Why the GPUs are not free, or not enough."""
    known = "gpu_reason" not in seen[0]
    if known and len(seen) < count:
        return f"the run takes {count} GPUs of this machine, PyTorch sees {len(seen)}"
    which = [f"GPU {number}" if count > 1 else "the GPU" for number in range(len(seen))]
    held = (_held(one, name) for one, name in zip(seen, which, strict=True))
    return next((reason for reason in held if reason), None)


def _held(found: dict[str, Any], name: str) -> str | None:
    """Why a GPU is not free; the driver's own memory is not counted by NVML's second version."""
    processes, used = found.get("processes"), found.get("used_bytes")
    if processes:
        return f"{processes} other processes are on {name}; end them or choose another"
    if used is not None and used > _FOREIGN_BYTES:
        return f"{used / 2**20:,.0f} MiB of {name} are in use; free them or choose another"
    return None


def _free_host() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes.get("MemAvailable")
