"""Why a plan has no step time, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.speed.traffic import transfers
from vram_plan.estimator.speed.transfer import NotModelled

if TYPE_CHECKING:
    from vram_plan.estimator.planner import Plan

__all__ = ["gap"]


def gap(plan: Plan) -> str:
    """The reason, or an empty string where there is a step time or no GPU was named."""
    if plan.config.gpu is None or plan.step is not None:
        return ""
    if not plan.config.training:
        return "the speed of inference is not modelled"
    try:
        transfers(plan.config)
    except NotModelled as missing:
        return str(missing)
    return "not modelled for this combination of options"
