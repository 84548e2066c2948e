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


def rotate_part_held(
    t: Tape, q: Tensor, k: Tensor, share: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The same on queries and keys, where ``forward`` holds the parts as local variables.

    Returns both and what is held: the turned parts and views of q and k as they came. transformers
    5.23.0 ``models/phi/modeling_phi.py`` and ``models/stablelm/modeling_stablelm.py``.
    """
    turning = int(q.numel * share), int(k.numel * share)
    q_turned, q_rest = narrow(t, q, turning[0]), narrow(t, q, q.numel - turning[0])
    k_turned, k_rest = narrow(t, k, turning[1]), narrow(t, k, k.numel - turning[1])
    q_turned, k_turned = rotate(t, q_turned, cos, sin), rotate(t, k_turned, cos, sin)
    held = (q_turned, q_rest, k_turned, k_rest)
    return concat(t, (q_turned, q_rest)), concat(t, (k_turned, k_rest)), held
