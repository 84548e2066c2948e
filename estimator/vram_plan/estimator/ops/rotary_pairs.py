"""Rotary embeddings of model code kept beside weights."""

from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    concat,
    mul,
    narrow,
    subtract,
)
from vram_plan.estimator.ops.rotary import rotate, rotate_part
from vram_plan.estimator.tape import Tape, Tensor


def rotate_pairs(t: Tape, x: Tensor, cos: Tensor, sin: Tensor, numel: int) -> Tensor:
    """Neighbours as complex numbers, written out; the first ``numel`` elements alone.

    ``apply_rotary_pos_emb`` of THUDM/chatglm2-6b ``modeling_chatglm.py``, run operator by operator
    (its script is not fused without a profiling executor).
    """
    turned, kept = narrow(t, x, numel), narrow(t, x, x.numel - numel)
    half = numel // 2
    real = subtract(t, mul(t, narrow(t, turned, half), cos), mul(t, narrow(t, turned, half), sin))
    imaginary = add(t, mul(t, narrow(t, turned, half), cos), mul(t, narrow(t, turned, half), sin))
    del turned
    stacked = concat(t, (real, imaginary))
    del real, imaginary
    return concat(t, (stacked, kept))


def rotate_in_fp32(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` of an fp32 copy, cast back (Baichuan 2)."""
    wide = cast(t, x, FP32_BYTES, by_token=x.by_token)
    return cast(t, rotate(t, wide, cos, sin), x.itemsize, by_token=x.by_token)


def rotate_part_in_fp32(t: Tape, x: Tensor, cos: Tensor, sin: Tensor, numel: int) -> Tensor:
    """`rotate_part` of an fp32 copy, cast back (Qwen)."""
    wide = cast(t, x, FP32_BYTES)
    return cast(t, rotate_part(t, wide, cos, sin, numel), x.itemsize)
