"""Attention kernels: what each allocates in the forward pass, keeps, and allocates going back.

Shapes are per rank: q [batch, heads, seq, head_dim], k and v [batch, kv_heads, kv_seq, head_dim].
"""

from dataclasses import dataclass

from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, dropout, scale
from vram_plan.estimator.tape import Tape, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The shape of one attention call on this rank.

    Attributes:
        batch: sequences.
        seq: query positions.
        kv_seq: key positions.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a query or key head.
        value_dim: width of a value head.
        dropout: probability of dropout on the attention probabilities.
        masked: an additive mask is passed (padding, ALiBi, windows under eager attention).
        half: computed in fp16 (the only dtype the CUDA softmax upcasts by itself).
    """

    batch: int
    seq: int
    kv_seq: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dropout: float = 0.0
    masked: bool = False
    half: bool = False

    @property
    def scores(self) -> int:
        """Elements of the score matrix: batch · heads · seq · kv_seq."""
        return self.batch * self.heads * self.seq * self.kv_seq


def flash(t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads, *, seeds: int = 1) -> Tensor:
    """Flash attention: keeps q, k, v, the output and an fp32 log-sum-exp per head and token.

    And the state of the random numbers: one tensor in the flash_attn package, two in PyTorch.

    Sizes as in Dao-AILab/flash-attention v2 ``csrc/flash_attn/flash_api.cpp``: ``mha_fwd`` makes
    out and softmax_lse; ``mha_bwd`` makes dq, dk, dv, softmax_d and dq_accum (both fp32, sequence
    rounded up to 128, head to 32 or 64), and dk and dv for every query head when heads share keys.
    """
    out = t.new(s.batch * s.seq * s.heads * s.value_dim, q.itemsize)
    if not t.needs(q.node, k.node, v.node):
        return out
    lse = t.new(s.batch * s.heads * s.seq, FP32_BYTES)
    state = tuple(t.new(2, 8).storage for _ in range(seeds))
    kept = (q.storage, k.storage, v.storage, out.storage, lse.storage)
    qn, kn, vn, itemsize = q.numel, k.numel, v.numel, q.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept, state
        dq, dk, dv = t.new(qn, itemsize), t.new(kn, itemsize), t.new(vn, itemsize)
        rounded = _round_up(s.seq, 128)
        softmax_d = t.new(s.batch * s.heads * rounded, FP32_BYTES)
        width = _round_up(s.head_dim, 32 if s.head_dim <= 128 else 64)
        dq_accum = t.new(s.batch * rounded * s.heads * width, FP32_BYTES)
        if s.kv_heads != s.heads:
            expanded = s.batch * s.kv_seq * s.heads * s.head_dim
            spread = t.new(expanded, itemsize), t.new(expanded, itemsize)
            del spread
        del softmax_d, dq_accum
        return dq, dk, dv

    return t.record(out, (q.node, k.node, v.node), backward)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def eager(t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads) -> Tensor:
    """Scores written out: matmul, scale, mask, fp32 softmax, cast, dropout, matmul.

    ``eager_attention_forward`` of transformers 5.23.0 ``models/llama/modeling_llama.py``.
    """
    itemsize = q.itemsize
    k, v = repeat_heads(t, k, s), repeat_heads(t, v, s)
    weights = scale(t, batched_product(t, q, k, s.scores))
    if s.masked:
        weights = add(t, weights, t.new(0, itemsize))
    weights = cast(t, softmax(t, weights, FP32_BYTES, half_to_float=s.half), itemsize)
    weights = dropout(t, weights, s.dropout)
    out = batched_product(t, weights, v, s.batch * s.heads * s.seq * s.value_dim)
    return copy(t, out)


def repeat_heads(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """``repeat_kv``: keys and values copied for every query head that shares them."""
    if s.heads == s.kv_heads:
        return x
    numel, itemsize = x.numel, x.itemsize
    out = t.new(numel * (s.heads // s.kv_heads), itemsize)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def batched_product(t: Tape, a: Tensor, b: Tensor, numel: int) -> Tensor:
    """``matmul`` of two activations: saves each where the other needs a gradient."""
    keep_a = a.storage if b.requires_grad else None
    keep_b = b.storage if a.requires_grad else None
    (an, ai, a_needs), (bn, bi, b_needs) = (
        (a.numel, a.itemsize, a.requires_grad),
        (b.numel, b.itemsize, b.requires_grad),
    )

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = keep_a, keep_b
        return t.new(an, ai) if a_needs else None, t.new(bn, bi) if b_needs else None

    return t.record(t.new(numel, a.itemsize), (a.node, b.node), backward)


def softmax(t: Tape, x: Tensor, itemsize: int, *, half_to_float: bool) -> Tensor:
    """``softmax(x, dtype=…)``: keeps its output.

    Only fp16 on CUDA goes to fp32 inside the kernel (``half_to_float``); bf16 is copied to fp32
    first (``aten/src/ATen/native/SoftMax.cpp``, torch 2.13.0).
    """
    fused = half_to_float and x.itemsize != itemsize
    if not fused:
        x = cast(t, x, itemsize)
    out = t.new(x.numel, itemsize)
    kept, before = out.storage, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, before),)

    return t.record(out, (x.node,), backward)
