"""Falcon: 7B with one key and value head, 40B and 180B with groups, RW with distances as a bias."""

from __future__ import annotations

from vram_plan.estimator.blocks.falcon_heads import kv_heads, split_heads
from vram_plan.estimator.blocks.gpt_parts import (
    INDEX_BYTES,
    Inputs,
    Shareds,
    embed_tokens,
    holding_outputs,
    local,
    model,
    position_ids,
    rotary_tables,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import Heads, batched_product, softmax
from vram_plan.estimator.ops.broadcast import (
    add_in_place,
    factor,
    math,
    plain_scores,
    plus_mask,
    scale_in_place,
)
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, copy
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.ops.sdpa import kernel_for, sdpa
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

Result = tuple[Tensor, tuple[Tensor, ...]]
"""An output, and what the class holds in local variables until it has projected it."""


def layer(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``FalconDecoderLayer.forward``, transformers 5.23.0 ``models/falcon/modeling_falcon.py``."""
    spec = f.spec
    hidden, residual = spec.hidden_size, x
    if spec.num_ln_in_parallel_attn == 2:
        normed = f.layer_norm("ln_attn", x, hidden)
        second = f.layer_norm("ln_mlp", x, hidden)
    else:
        normed = second = f.layer_norm("input_layernorm", x, hidden)
    attended = attention(f, normed, shared)
    if not spec.use_parallel_residual:
        residual = f.add(residual, f.dropout(attended, spec.attention_dropout))
        second = f.layer_norm("post_attention_layernorm", residual, hidden)
    forwarded = mlp(f, second)
    if spec.use_parallel_residual:
        forwarded = add_in_place(f.t, forwarded, attended)
    return f.add(residual, f.dropout(forwarded, spec.hidden_dropout))


def attention(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``FalconAttention.forward``."""
    spec, entered = f.spec, x
    hidden = spec.hidden_size
    outputs = spec.query_dim + 2 * spec.kv_dim
    name = "self_attention.query_key_value"
    fused = dense(f, name, x, (hidden, outputs), "column")
    q, k, v = split_heads(f, fused)
    if spec.position_embedding_type == "rope":
        cos, sin = shared["cos"], shared["sin"]
        q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out, held = kernel(f, (q, k, v), shared, x.itemsize)
    f.held = held[-1] if held else None
    out = dense(f, "self_attention.dense", out, (hidden, hidden), "row")
    del fused, held
    return f.sublayer("attention", out, entered)


def dense(f: Forward, name: str, x: Tensor, shape: tuple[int, int], split: str) -> Tensor:
    """``FalconLinear``: ``x @ weight.T``, then plus the bias, fp32 where autocast left that so."""
    inputs, outputs = (
        n // f.how.tensor if s == split else n
        for n, s in zip(shape, ("row", "column"), strict=True)
    )
    f.param(f"{name}.weight", (outputs, inputs), "linear").turned = True
    out = f.linear(name, x, shape, bias=f.spec.mlp_bias, split=split)
    if not f.spec.mlp_bias:
        return out
    if out.itemsize == f.how.compute_bytes:
        f.t.new(out.numel, out.itemsize)  # the product, gone when the sum is there
    return cast(f.t, out, f.how.compute_bytes)


def kernel(
    f: Forward, parts: tuple[Tensor, Tensor, Tensor], shared: Inputs, itemsize: int
) -> Result:
    """The kernel: ``sdpa`` always gets a mask, so it is never flash attention."""
    alibi = f.spec.position_embedding_type == "alibi"
    heads = f.heads(kv_heads=kv_heads(f), **({} if alibi else {"dropout": 0.0}))
    if f.how.attention == "flash" and not alibi:
        return f.attention(*parts, kv_heads=heads.kv_heads, dropout=0.0), ()
    if f.how.attention == "eager":
        return with_bias(f, parts, heads, itemsize) if alibi else eager(f, parts, heads, itemsize)
    mask = shared["mask"] if alibi else Tensor(f.batch * heads.seq * heads.kv_seq, 1, None)
    if kernel_for(parts[0].itemsize, heads, masked=True) == "math":
        return math(f.t, parts, heads, mask, autocast=f.how.autocast), ()
    return sdpa(f.t, *parts, heads, mask=mask), ()


def eager(f: Forward, parts: tuple[Tensor, Tensor, Tensor], s: Heads, itemsize: int) -> Result:
    """Scores divided in place, a softmax in the dtype of the hidden states, no dropout."""
    t, (q, k, v), autocast = f.t, parts, f.how.autocast
    scores = scale_in_place(t, plain_scores(t, q, k, s, autocast=autocast))
    masked = plus_mask(t, scores, f.how.stream_bytes)
    scores = softmax(t, masked, itemsize, half_to_float=s.half)
    del masked
    return merged(f, scores, v, s), (scores,)


def with_bias(f: Forward, parts: tuple[Tensor, Tensor, Tensor], s: Heads, itemsize: int) -> Result:
    """The same with ALiBi: fp32 scores, and every step held by a local variable."""
    t, (q, k, v), autocast = f.t, parts, f.how.autocast
    product = plain_scores(t, q, k, s, autocast=autocast)
    wide = cast(t, product, FP32_BYTES)
    logits = scale_in_place(t, plus_mask(t, wide, f.how.stream_bytes))
    masked = plus_mask(t, logits, f.how.stream_bytes)
    probabilities = softmax(t, masked, itemsize, half_to_float=False)
    del masked
    probabilities = f.dropout(probabilities, s.dropout)
    return merged(f, probabilities, v, s), (product, wide, logits, probabilities)


def merged(f: Forward, weights: Tensor, v: Tensor, s: Heads) -> Tensor:
    """The product with the values, laid out by tokens."""
    t, autocast = f.t, f.how.autocast
    low = cast(t, weights, 2) if autocast else weights
    values = factor(t, v, s, s.kv_heads, autocast=autocast)
    size = s.batch * s.heads * s.seq * s.value_dim
    return copy(t, batched_product(t, low, values, size, s.kv_seq))


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``FalconMLP.forward``."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.intermediate_size)
    x = f.act(dense(f, "mlp.dense_h_to_4h", x, shape, "column"))
    x = dense(f, "mlp.dense_4h_to_h", x, shape[::-1], "row")
    return f.sublayer("mlp", x, entered)


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("ln_f", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def shared_tensors(f: Forward) -> Shareds:
    """Tables of cos and sin (computed in any case), position ids, the mask, the bias."""
    spec = f.spec
    turned = spec.position_embedding_type == "rope"
    kept = {**rotary_tables(f, saved=turned), **position_ids(f)}
    tokens, itemsize = f.tokens, f.how.stream_bytes
    pairs = f.seq * (f.seq + f.how.method.prefix_tokens)
    if not turned:
        heads = spec.num_attention_heads
        kept["ones"] = local(tokens, INDEX_BYTES)
        kept["alibi"] = Shared(numel=tokens * heads, itemsize=itemsize, saved=False)
        kept["mask"] = Shared(
            numel=f.batch * heads * pairs, itemsize=itemsize, saved=f.how.attention != "eager"
        )
    elif f.how.attention == "eager":
        kept["mask"] = Shared(numel=f.batch * pairs, itemsize=itemsize, saved=False)
    elif f.how.attention == "sdpa":
        kept["mask"] = Shared(numel=pairs, itemsize=1, saved=False)
    return kept


def compose(spec: ModelSpec) -> Composition:
    """``FalconForCausalLM``."""
    names = ("transformer.word_embeddings", "transformer.h")
    return holding_outputs(model(spec, names, (embed_tokens, layer, head), shared_tensors))
