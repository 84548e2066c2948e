"""Which device a run takes when none is named."""

from __future__ import annotations

from vram_plan.bench.environment import missing_libraries

__all__ = ["default_device", "require_libraries"]


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
