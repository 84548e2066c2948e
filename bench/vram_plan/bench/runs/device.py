"""Which device a run takes when none is named."""

from __future__ import annotations

from vram_plan.bench.environment import missing_libraries

__all__ = ["default_device"]


def default_device() -> str:
    """``cuda`` where PyTorch sees one, else ``cpu``.

    Raises:
        ValueError: if PyTorch is not installed.
    """
    missing = missing_libraries()
    if missing:
        raise ValueError(
            f"bench needs {', '.join(missing)}, not installed here: pip install 'vram-plan[bench]'"
        )
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
