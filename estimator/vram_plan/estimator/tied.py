"""A table that is the head's weight too: its two gradients are added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.ops.fused_losses import CHUNK_TOKENS
from vram_plan.estimator.ops.linear import LOW_BYTES

if TYPE_CHECKING:
    from vram_plan.estimator.tape import Param
    from vram_plan.estimator.treatment import Treatment

__all__ = ["waits_as_view"]


def waits_as_view(how: Treatment, table: Param, tokens: int) -> bool:
    """Whether the head's gradient is a view while it waits for the lookup's over ``tokens``.

    That of a linear layer is (``TBackward``). No view is what autocast casts back to the weight's
    type, or a chunk whose weight was narrow, the sum of several chunks, or what Liger made in the
    forward pass. A chunk transposes the weight before autocast casts it, so the view comes last.
    """
    wide = table.itemsize > LOW_BYTES
    if how.loss == "chunked":
        return wide and tokens <= CHUNK_TOKENS
    return how.loss != "liger" and not (how.autocast and wide)
