"""Rotary embeddings that turn only the first part of every head."""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import concat, narrow
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.tape import Tape, Tensor


def rotate_part(t: Tape, x: Tensor, share: float, cos: Tensor, sin: Tensor) -> Tensor:
    """``cat((rotate(x[..., :n]), x[..., n:]))``.

    transformers 5.23.0 ``models/gpt_neox/modeling_gpt_neox.py``, ``apply_rotary_pos_emb``.
    """
    turning = int(x.numel * share)
    first, rest = narrow(t, x, turning), narrow(t, x, x.numel - turning)
    return concat(t, (rotate(t, first, cos, sin), rest))
