"""Rotary position embeddings."""

from vram_plan.estimator.ops.elementwise import add, concat, mul, narrow, negate
from vram_plan.estimator.tape import Tape, Tensor


def rotate(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x * cos + rotate_half(x) * sin``: keeps only cos and sin.

    ``apply_rotary_pos_emb`` of transformers 5.23.0 ``models/llama/modeling_llama.py``.
    """
    kept = mul(t, x, cos)
    turned = mul(t, rotate_half(t, x), sin)
    out = add(t, kept, turned)
    out.by_token = x.by_token
    return out


def rotate_half(t: Tape, x: Tensor) -> Tensor:
    """``cat((-x2, x1))``."""
    half = x.numel // 2
    first, second = narrow(t, x, half), narrow(t, x, half)
    return concat(t, (negate(t, second), first))
