"""T5's attention: scores are not scaled; a bias of the distance between positions is added.

transformers 5.23.0 ``models/t5/modeling_t5.py`` (mT5 is a copy) and ``models/umt5/…``, whose blocks
each have a bias of their own. T5 does not support flash attention there: ``flash`` means ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import LOW_BYTES
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import cast, copy, relayout
from vram_plan.estimator.ops.embedding import LeafVariable
from vram_plan.estimator.ops.plain_attention import plain
from vram_plan.estimator.ops.sdpa import sdpa
from vram_plan.estimator.tape import Leaf, Tensor

BOOLEAN_BYTES = 1
ENCODED, MASK = "encoder", "mask"


def bias_name(f: Forward, *, cross: bool) -> str:
    """Under which name the first block of a stack hands its bias to the others."""
    return f"{f.stack}.{'cross' if cross else 'position'}_bias"


def attention(
    f: Forward, name: str, x: Tensor, shared: Mapping[str, Tensor], *, cross: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``T5Attention.forward``: its output, the position bias it used, the attention weights."""
    spec = f.spec
    shape, read = (spec.hidden_size, spec.query_dim), shared[ENCODED] if cross else x
    q = relayout(f.t, f.linear(f"{name}.q", x, shape, split="column"))
    k = relayout(f.t, f.linear(f"{name}.k", read, shape, split="column"))
    v = relayout(f.t, f.linear(f"{name}.v", read, shape, split="column"))
    k, v = f.how.method.keys_values(f, k, v)
    bias = shared.get(bias_name(f, cross=cross))
    if bias is None:
        bias = _zeros(f, q) if cross else _relative(f, name)
    out, weights = _kernel(f, (q, k, v), bias, None if cross else shared.get(MASK), cross=cross)
    out = f.linear(f"{name}.o", out, shape[::-1], split="row")
    return f.sublayer("attention", out, x), bias, weights


def _relative(f: Forward, name: str) -> Tensor:
    """``compute_bias``: [1, heads, seq, seq], a permuted view of a lookup by distance."""
    buckets, heads = f.spec.relative_attention_num_buckets, f.spec.num_attention_heads
    pairs = f.seq * _own_keys(f)
    offsets = f.t.new(pairs, INDEX_BYTES)
    distances = _buckets(f, pairs)
    bias = f.embedding(f"{name}.relative_attention_bias", distances, buckets, heads // f.how.tensor)
    del offsets  # a local variable of compute_bias
    return bias


def _buckets(f: Forward, pairs: int) -> Tensor:
    """``_relative_position_bucket``: int64 for every pair of positions, up to seven at once.

    Distances up to a bound count singly, farther ones by their logarithm; an encoder, which looks
    both ways, keeps the sign's half of the buckets apart.
    """
    t = f.t
    sign = t.new(pairs, INDEX_BYTES) if f.stack == "encoder" else None
    near = t.new(pairs, INDEX_BYTES)
    is_near = t.new(pairs, BOOLEAN_BYTES)
    far, bound = t.new(pairs, INDEX_BYTES), t.new(pairs, INDEX_BYTES)
    bounded = t.new(pairs, INDEX_BYTES)
    del far, bound
    chosen = t.new(pairs, INDEX_BYTES)
    if sign is None:
        sign = t.new(pairs, INDEX_BYTES)
    del near, is_near, bounded, chosen
    return sign


def _own_keys(f: Forward) -> int:
    """Keys of a sequence attending to itself: a prefix comes before the decoder's."""
    return f.seq + (f.how.method.prefix_tokens if f.stack == "decoder" else 0)


def _zeros(f: Forward, q: Tensor) -> Tensor:
    """No bias between target and source.

    Under checkpointing T5 asks for its gradient: autograd's graph, made in the first pass, then
    holds it, and the recomputation makes another.
    """
    heads = f.spec.num_attention_heads // f.how.tensor
    zeros = f.t.new(heads * f.seq * f.source_seq, q.itemsize)
    if f.checkpointed and f.how.training and f.spec.model_type != "umt5":
        zeros.node = LeafVariable(zeros.storage) if f.t.forgets else Leaf()
    return zeros


def _kernel(
    f: Forward,
    parts: tuple[Tensor, Tensor, Tensor],
    bias: Tensor,
    mask: Tensor | None,
    *,
    cross: bool,
) -> tuple[Tensor, Tensor | None]:
    s = f.heads(kv_seq=f.source_seq if cross else _own_keys(f))
    if f.how.attention == "eager":
        return plain(f.t, parts, s, bias=bias, mask=mask)
    causal = f.stack == "decoder" and not cross
    # A variable holds it in the bias' dtype until the kernel is through.
    added = wide = bias if cross else copy(f.t, _where_causal(f, bias) if causal else bias)
    if f.how.autocast:
        added = cast(f.t, wide, LOW_BYTES)
        if isinstance(bias.node, LeafVariable):  # autocast caches the copies of fp32 leaves
            f.cache["cross bias"] = added
    return sdpa(f.t, *parts, s, mask=added), None


def _where_causal(f: Forward, bias: Tensor) -> Tensor:
    """``torch.where(causal, bias, lowest)``: keeps the condition.

    Behind a prefix that is the model's mask, which has a row for every sequence; so has the result
    (transformers 5.23.0 ``integrations/sdpa_attention.py``, ``create_position_bias_mask``).
    """
    numel, itemsize = bias.numel, bias.itemsize
    made = numel * (f.batch if f.how.method.prefix_tokens else 1)
    condition = f.t.new(f.seq * _own_keys(f), BOOLEAN_BYTES)
    kept = condition.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (f.t.new(numel, itemsize),)

    return f.t.record(f.t.new(made, itemsize), (bias.node,), backward)
