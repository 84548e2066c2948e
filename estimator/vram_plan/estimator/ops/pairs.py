"""Rotary embeddings that turn pairs of slices, or complex numbers, instead of halves."""

from __future__ import annotations

from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    concat,
    mul,
    narrow,
    subtract,
)
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.tape import Tape, Tensor


def rotate_slices(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x[..., 0::2]`` and ``x[..., 1::2]`` turned against each other.

    ``apply_rotary_pos_emb_interleave`` of transformers 5.23.0
    ``models/deepseek_v3/modeling_deepseek_v3.py``: a slice's gradient fills a tensor of x's size.
    """
    half = x.numel // 2
    return _turn(t, (narrow(t, x, half), narrow(t, x, half)), cos, sin)


def rotate_chunks(t: Tape, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The two chunks of x turned against each other.

    ``_apply_rotary_emb`` of transformers 5.23.0 ``models/gpt_oss/modeling_gpt_oss.py``.
    """
    half = x.numel // 2
    return _turn(t, split(t, x, (half, half)), cos, sin)


def _turn(t: Tape, parts: tuple[Tensor, ...], cos: Tensor, sin: Tensor) -> Tensor:
    """``cat((a·cos - b·sin, b·cos + a·sin))``."""
    a, b = parts
    first = subtract(t, mul(t, a, cos), mul(t, b, sin))
    second = add(t, mul(t, b, cos), mul(t, a, sin))
    return concat(t, (first, second))


def rotate_complex(t: Tape, q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """``view_as_real(view_as_complex(x.float()) * freqs_cis).type_as(x)`` of q and k.

    ``apply_rotary_emb`` of transformers 5.23.0 ``models/deepseek_v2/modeling_deepseek_v2.py``. A
    complex number counts as its two parts.
    """
    wide_q, wide_k = cast(t, q, FP32_BYTES), cast(t, k, FP32_BYTES)
    turned_q = cast(t, _turn_complex(t, wide_q, turns), q.itemsize)
    turned_k = cast(t, _turn_complex(t, wide_k, turns), k.itemsize)
    del wide_q, wide_k
    return turned_q, turned_k


def _turn_complex(t: Tape, x: Tensor, turns: Tensor) -> Tensor:
    """``x * turns``; going back the conjugate of turns is written out."""
    numel, itemsize, turns_numel = x.numel, x.itemsize, turns.numel
    kept = turns.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        conjugate = t.new(turns_numel, turns.itemsize)
        result = t.new(numel, itemsize)
        del conjugate
        return (result,)

    out = t.new(numel, itemsize)
    return t.record(out, (x.node,), backward, packs=True, saves=(turns,))
