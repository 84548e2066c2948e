"""What a measurement ran on: versions and machine, no names of hosts, users or folders.

CUDA's version is known to the process of the run, driver and GPU to the sampler.
"""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from typing import Any

__all__ = ["LIBRARIES", "commit", "environment", "missing_libraries", "version_of"]

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")
#: Without these no step runs; the others are asked for by some configurations only.
_NEEDED = ("torch", "transformers")


def environment() -> dict[str, Any]:
    """Versions of what decides the figures, and the machine they were seen on."""
    return {
        "vram_plan": version_of("vram-plan"),
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "libraries": {name: version_of(name) for name in LIBRARIES},
    }


@cache
def commit() -> str | None:
    """The commit that is checked out where the run was started; None outside a checkout."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def missing_libraries(needed: tuple[str, ...] = _NEEDED) -> tuple[str, ...]:
    """Which of them are not installed."""
    return tuple(name for name in needed if version_of(name) is None)


def version_of(name: str) -> str | None:
    """Version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
