"""Rotary position embeddings."""

from vram_plan.estimator.ops.elementwise import add, cast, concat, mul, narrow, negate
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


def rotate_wide(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` with fp32 tables, cast back (OLMo: ``models/olmo/modeling_olmo.py``)."""
    return cast(t, rotate(t, x, cos, sin), x.itemsize, by_token=x.by_token)


def rotate_part(t: Tape, x: Tensor, cos: Tensor, sin: Tensor, numel: int) -> Tensor:
    """The first ``numel`` elements of x rotated, the others put behind them.

    ``apply_rotary_pos_emb`` of ``models/phi3/modeling_phi3.py`` and ``models/glm/modeling_glm.py``.
    """
    turned, kept = narrow(t, x, numel), narrow(t, x, x.numel - numel)
    return concat(t, (rotate(t, turned, cos, sin), kept))


def rotate_half(t: Tape, x: Tensor) -> Tensor:
    """``cat((-x2, x1))``."""
    half = x.numel // 2
    first, second = narrow(t, x, half), narrow(t, x, half)
    return concat(t, (negate(t, second), first))
