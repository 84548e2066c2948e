"""The closed form: memory of a training step as arithmetic on a ledger of tensors.

>>> from vram_plan.estimator import plan
>>> plan("7b", zero=2, gpus=8).memory.model_states_bytes
26250000000
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vram_plan.estimator.planner import Plan, plan

__all__ = ["Plan", "plan"]


def __getattr__(name: str) -> object:
    """Import the interface on first use: the layers below import this package too."""
    if name in __all__:
        from vram_plan.estimator import planner

        return getattr(planner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
