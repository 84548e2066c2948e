"""What a measurement ran on: versions and machine, no names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

__all__ = ["LIBRARIES", "environment", "missing_libraries"]

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")
#: Without these no step runs; the others are asked for by some configurations only.
_NEEDED = ("torch", "transformers")


def environment() -> dict[str, Any]:
    """Versions of what decides the figures, and the machine they were seen on."""
    return {
        "vram_plan": _version("vram-plan"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def missing_libraries(needed: tuple[str, ...] = _NEEDED) -> tuple[str, ...]:
    """Which of them are not installed."""
    return tuple(name for name in needed if _version(name) is None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
