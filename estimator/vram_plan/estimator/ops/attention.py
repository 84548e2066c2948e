"""Attention kernels: what each allocates in the forward pass, keeps, and allocates going back.

Shapes are per rank: q [batch, heads, seq, head_dim], k and v [batch, kv_heads, kv_seq, head_dim].
"""

from dataclasses import dataclass, replace

from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    copy,
    dropout,
    relayout,
    scale,
    tanh,
)
from vram_plan.estimator.tape import Tape, Tensor

LOW_BYTES = 2


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
        masked: a mask is passed: to eager attention always, to sdpa for windows that are shorter
            than the sequence.
        mask_bytes: bytes per element of that mask for eager attention; 0: as the queries'.
        half: computed in fp16 (the only dtype the CUDA softmax upcasts by itself).
        autocast: matrix products and fused kernels run in 16 bits.
        by_head: queries lie in memory head by head (behind a ``cat``), and so does what flash
            attention makes of them; joining the heads then copies.
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
    mask_bytes: int = 0
    half: bool = False
    autocast: bool = False
    by_head: bool = False

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
    if s.autocast:
        q, k, v = (cast(t, x, LOW_BYTES) for x in (q, k, v))
    out = t.compute(s.batch * s.seq * s.heads * s.value_dim, q.itemsize)
    if t.work is not None:
        t.work.attention(s, q.itemsize)
    if not t.needs(q.node, k.node, v.node):
        return out
    lse = t.compute(s.batch * s.heads * s.seq, FP32_BYTES)
    state = tuple(t.compute(2, 8).storage for _ in range(seeds))
    kept = (q.storage, k.storage, v.storage, out.storage, lse.storage)
    qn, kn, vn, itemsize = q.numel, k.numel, v.numel, q.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept, state
        dq, dk, dv = t.new(qn, itemsize), t.new(kn, itemsize), t.new(vn, itemsize)
        if t.work is not None:
            t.work.attention(s, itemsize, outputs=3)
        dq.by_token = dk.by_token = dv.by_token = True  # only v's matters where q and k are joined
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

    seen = tuple(Tensor(2, 8, seed) for seed in state)
    out = t.record(out, (q.node, k.node, v.node), backward, saves=(q, k, v, out, lse, *seen))
    return copy(t, out) if s.by_head else out


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def block_sparse(t: Tape, parts: tuple[Tensor, Tensor, Tensor], s: Heads, density: float) -> Tensor:
    """Scores of ``density`` of the blocks: product, softmax in place of it, dropout, product.

    DeepSpeed ``deepspeed/ops/sparse_attention/{sparse_self_attention,softmax}.py`` @ v0.14.0: the
    softmax writes over the scores and keeps them; the products keep q, k, v and the probabilities.
    """
    q, k, v = parts
    scores = int(s.scores * density)
    weights = _softmax_in_place(t, batched_product(t, q, k, scores, s.head_dim))
    weights = dropout(t, weights, s.dropout)
    size, keys = s.batch * s.heads * s.seq * s.value_dim, round(s.kv_seq * density)
    return merged(t, batched_product(t, weights, v, size, keys), s)


def _softmax_in_place(t: Tape, x: Tensor) -> Tensor:
    out = Tensor(x.numel, x.itemsize, x.storage)
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (grad,)

    return t.record(out, (x.node,), backward)


def eager(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads, *, capped: bool = False
) -> tuple[Tensor, Tensor]:
    """Scores written out: matmul, scale, mask, fp32 softmax, cast, dropout, matmul.

    ``eager_attention_forward`` of transformers 5.23.0 ``models/llama/modeling_llama.py``; of
    ``models/gemma2/modeling_gemma2.py`` with soft-``capped`` scores. The scores take the queries'
    dtype after the softmax: fp32 under autocast, whose products are 16-bit, unless the rotary
    embedding casts queries back (OLMo); an fp32 mask widens them all the same. Returns the
    probabilities too.
    """
    itemsize = q.itemsize
    keys, values = repeat_kv(t, k, s), repeat_kv(t, v, s)
    weights = scale(t, batched_product(t, low(t, q, s), low(t, keys, s), s.scores, s.head_dim))
    if capped:
        weights = scale(t, tanh(t, scale(t, weights)))
    if s.masked:
        weights = add(t, weights, Tensor(0, s.mask_bytes or itemsize, None))
    weights = cast(t, softmax(t, weights, FP32_BYTES, half_to_float=s.half), itemsize)
    weights = dropout(t, weights, s.dropout)
    factors = low(t, weights, s, flat=True), low(t, values, s)
    out = batched_product(t, *factors, s.batch * s.heads * s.seq * s.value_dim, s.kv_seq)
    del factors
    return merged(t, out, s), weights


def low(t: Tape, x: Tensor, s: Heads, *, flat: bool = False) -> Tensor:
    """A factor as ``matmul`` takes it: in autocast's 16 bits, batch and heads in one dimension.

    The second copies what is laid out by tokens (``aten/src/ATen/native/LinearAlgebra.cpp``,
    torch 2.13.0), unless it is ``flat`` already.
    """
    by_token = x.by_token and s.batch > 1 and s.heads > 1
    if s.autocast:
        x = cast(t, x, LOW_BYTES)
    return x if flat or not by_token else copy(t, x)


def merged(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """``transpose(1, 2).contiguous()`` of a product: a copy.

    Its gradient is copied too where ``matmul`` had split batch from heads.
    """
    return copy(t, relayout(t, x) if s.batch > 1 and s.heads > 1 else x)


def repeated(t: Tape, k: Tensor, v: Tensor, s: Heads) -> tuple[Tensor, Tensor, Heads]:
    """Keys and values written out for every query head, and the shape that follows."""
    keys, values = repeat_heads(t, k, s), repeat_heads(t, v, s)
    return keys, values, replace(s, kv_heads=s.heads)


def repeat_kv(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """``repeat_kv`` of transformers: expanded and reshaped, which copies all but a single head.

    ``matmul`` copies that one where it joins batch and heads; a cast writes it out.
    """
    if s.kv_heads != 1 or s.heads == 1:
        return repeat_heads(t, x, s)
    numel, itemsize = x.numel, x.itemsize
    out = Tensor(numel * s.heads, itemsize, x.storage)
    out.by_token = not (s.autocast and itemsize > LOW_BYTES)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def repeat_heads(t: Tape, x: Tensor, s: Heads) -> Tensor:
    """Keys and values copied for every query head that shares them."""
    if s.heads == s.kv_heads:
        return x
    numel, itemsize = x.numel, x.itemsize
    out = t.new(numel * (s.heads // s.kv_heads), itemsize)
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def batched_product(t: Tape, a: Tensor, b: Tensor, numel: int, inner: int) -> Tensor:
    """``matmul`` of two activations: saves each where the other needs a gradient.

    ``inner``: the length of the dimension that is summed over.
    """
    keep_a = a.storage if b.requires_grad else None
    keep_b = b.storage if a.requires_grad else None
    (an, ai, a_needs), (bn, bi, b_needs) = (
        (a.numel, a.itemsize, a.requires_grad),
        (b.numel, b.itemsize, b.requires_grad),
    )

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = keep_a, keep_b
        db = t.new(bn, bi).view() if b_needs else None
        if t.work is not None and db is not None:
            t.work.batched((an, numel, bn), numel * inner, ai)
        da = t.new(an, ai).view() if a_needs else None
        if t.work is not None and da is not None:
            t.work.batched((bn, numel, an), numel * inner, ai)
        return da, db

    out = t.compute(numel, a.itemsize)
    if t.work is not None:
        t.work.batched((an, bn, numel), numel * inner, ai)
    saves = (a if b_needs else None, b if a_needs else None)
    return t.record(out, (a.node, b.node), backward, saves=saves)


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
