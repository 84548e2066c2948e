"""Which device a run takes when none is named."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

from vram_plan.bench.environment import missing_libraries

__all__ = [
    "catalogue_name",
    "default_device",
    "gpu_uuid",
    "gpu_uuids",
    "named_gpu",
    "require_libraries",
]


def require_libraries() -> None:
    """Refuse to run where the libraries of a step are missing.

    Raises:
        ValueError: with what is missing and the command that mends it.
    """
    missing = missing_libraries()
    if missing:
        raise ValueError(
            f"bench run needs {', '.join(missing)}, not installed here: "
            "pip install 'vram-plan[bench]'"
        )


def default_device() -> str:
    """``cuda`` where PyTorch sees one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


_ASK_UUIDS = """
import torch
for number in range(torch.cuda.device_count()):
    print(f"GPU-{torch.cuda.get_device_properties(number).uuid}")
"""


@cache
def gpu_uuids() -> tuple[str, ...]:
    """Names of the GPUs that PyTorch sees, in its order: rank N of a machine takes number N.

    A process of its own asks: the one that starts runs must hold nothing of a GPU.
    """
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_UUIDS], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return ()
    return tuple(word for word in asked.stdout.split() if word.startswith("GPU-"))


def gpu_uuid() -> str | None:
    """Name of the GPU that PyTorch takes first; None where it sees none."""
    return next(iter(gpu_uuids()), None)


def named_gpu(device: str) -> str | None:
    """The catalogue's name of the GPU that a run would take; None without one, or not in it."""
    if device != "cuda":
        return None
    from vram_plan.bench.runs.nvml import Gpu, NoNvmlError

    try:
        gpu = Gpu(gpu_uuid())
    except NoNvmlError:
        return None
    name = gpu.facts["name"]
    gpu.close()
    return catalogue_name(str(name))


def catalogue_name(product: str) -> str | None:
    """The catalogue's name for a product name of NVML's, such as ``NVIDIA A100-SXM4-80GB``."""
    from vram_plan.profiles.gpus import find_gpu

    words = product.lower().replace("nvidia", "").replace("geforce", "").split()
    try:
        return find_gpu("-".join(words)).name
    except ValueError:
        return None
