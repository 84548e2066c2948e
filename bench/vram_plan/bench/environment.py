"""What a measurement ran on: versions and machine, no names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

__all__ = ["LIBRARIES", "environment", "missing_libraries", "version_of"]

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")
#: Without these no step runs; the others are asked for by some configurations only.
_NEEDED = ("torch", "transformers")


def environment() -> dict[str, Any]:
    """Versions of what decides the figures, and the machine they were seen on."""
    return {
        "vram_plan": version_of("vram-plan"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "libraries": {name: version_of(name) for name in LIBRARIES},
    }


def missing_libraries(needed: tuple[str, ...] = _NEEDED) -> tuple[str, ...]:
    """Which of them are not installed."""
    return tuple(name for name in needed if version_of(name) is None)


def version_of(name: str) -> str | None:
    """Version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
