"""Rotary embeddings that turn neighbouring pairs, as GPT-J and CodeGen do."""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import add, concat, mul, narrow, negate
from vram_plan.estimator.tape import Tape, Tensor


def rotate_pairs_part(
    t: Tape, x: Tensor, share: float, half: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The first ``share`` of every head turned, joined with the rest.

    Also returns both parts: ``forward`` keeps them as local variables, and with the second one
    the whole of ``x``. ``half`` is sin or cos [1, seq, rotary_dim / 2].

    transformers 5.23.0 ``models/gptj/modeling_gptj.py``.
    """
    if share >= 1:
        return (turned := rotate_pairs(t, x, half)), (turned, turned)
    turning = int(x.numel * share)
    first, rest = narrow(t, x, turning), narrow(t, x, x.numel - turning)
    first = rotate_pairs(t, first, half)
    return concat(t, (first, rest)), (first, rest)


def rotate_pairs(t: Tape, x: Tensor, half: Tensor) -> Tensor:
    """``apply_rotary_pos_emb``: sin and cos are repeated for every call and kept."""
    sin, cos = t.new(2 * half.numel, half.itemsize), t.new(2 * half.numel, half.itemsize)
    first = mul(t, x, cos)
    return add(t, first, mul(t, rotate_every_two(t, x), sin))


def rotate_every_two(t: Tape, x: Tensor) -> Tensor:
    """``stack((-x[..., 1::2], x[..., ::2]), -1)``."""
    half = x.numel // 2
    even, odd = narrow(t, x, half), narrow(t, x, half)
    return concat(t, (negate(t, odd), even))
