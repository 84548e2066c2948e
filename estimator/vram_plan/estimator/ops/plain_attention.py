"""Attention as the encoders of BERT's and BART's time write it out: softmax in the scores' dtype.

``eager_attention_forward`` of transformers 5.23.0 ``models/bert/modeling_bert.py`` (BART and T5
have the same; T5 adds a position bias). Shapes are those of `Heads`.
"""

from __future__ import annotations

from vram_plan.estimator.ops.attention import Heads, batched_product, low, merged, softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, dropout, scale
from vram_plan.estimator.tape import Tape, Tensor


def plain(
    t: Tape,
    parts: tuple[Tensor, Tensor, Tensor],
    s: Heads,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores of q and k, scaled, biased and masked; softmax; dropout; product with v.

    Returns the output and the attention weights, which the callers' variables hold until their
    block ends. Under autocast the softmax is fp32, and so are the weights.
    """
    q, k, v = parts
    weights = scale(t, batched_product(t, low(t, q, s), low(t, k, s), s.scores, s.head_dim))
    for term in (bias, mask):
        if term is not None:
            weights = add(t, weights, term)
    width = FP32_BYTES if s.autocast else weights.itemsize
    weights = softmax(t, weights, width, half_to_float=s.half)
    weights = dropout(t, weights, s.dropout)
    size = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, low(t, weights, s, flat=True), low(t, v, s), size, s.kv_seq)
    return merged(t, out, s), weights
