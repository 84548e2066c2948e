"""BLOOM: distances as a bias on the scores, a norm behind the embedding, its own GELU."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    Shareds,
    holding_outputs,
    local,
    mask,
    model,
    only_eager,
    token_lookup,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss, token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import batched_product, softmax
from vram_plan.estimator.ops.bloom_gelu import bloom_gelu
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, copy, narrow
from vram_plan.estimator.ops.scores import LOW_BYTES
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embed(f: Forward, ids: Tensor, shared: Inputs) -> Tensor:
    """The lookup and its norm; the lookup is kept by the norm and by ``forward``."""
    x = token_embedding(f, ids, shared)
    return f.layer_norm("word_embeddings_layernorm", x, f.spec.hidden_size)


def block(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``BloomBlock.forward``, transformers 5.23.0 ``models/bloom/modeling_bloom.py``."""
    hidden, branches = f.spec.hidden_size, f.spec.residual_from_layernorm
    normed = f.layer_norm("input_layernorm", x, hidden)
    residual = normed if branches else x
    attended = attention(f, normed, residual)
    normed = f.layer_norm("post_attention_layernorm", attended, hidden)
    residual = normed if branches else attended
    return mlp(f, normed, residual)


def attention(f: Forward, x: Tensor, residual: Tensor) -> Tensor:
    """``BloomAttention.forward``: every local variable lives until the residual is added."""
    spec, entered, t = f.spec, x, f.t
    hidden = spec.hidden_size
    name = "self_attention.query_key_value"
    fused = f.linear(name, x, (hidden, 3 * hidden), bias=True, split="column")
    third = fused.numel // 3
    q, k, v = (narrow(t, fused, third) for _ in range(3))
    k, v = f.how.method.keys_values(f, k, v)
    if f.batch > 1:  # batch and heads become one dimension
        q = copy(t, q)
        if not f.how.method.prefix_tokens:  # behind their prefix (``cat``) they lie by heads
            k, v = copy(t, k), copy(t, v)
    context, probabilities = written(f, q, k, v)
    out = f.linear("self_attention.dense", context, (hidden, hidden), bias=True, split="row")
    out = f.dropout(out, spec.hidden_dropout)
    out = f.add(residual, f.sublayer("attention", out, entered))
    f.held = probabilities[2]
    del context, probabilities
    return out


def written(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``alibi.baddbmm``, mask, fp32 softmax, dropout and product; also what stays alive."""
    t, s = f.t, f.heads()
    itemsize = LOW_BYTES if f.how.autocast else q.itemsize
    q, k, v = cast(t, q, itemsize), cast(t, k, itemsize), cast(t, v, itemsize)
    scores = batched_product(t, q, k, s.scores, s.head_dim)
    weights = add(t, scores, Tensor(0, f.how.stream_bytes, None))
    probabilities = softmax(t, weights, FP32_BYTES, half_to_float=s.half)
    probabilities = cast(t, probabilities, q.itemsize)
    probabilities = f.dropout(probabilities, s.dropout)
    size = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, probabilities, v, size, s.kv_seq)
    return copy(t, out), (scores, weights, probabilities)


def mlp(f: Forward, x: Tensor, residual: Tensor) -> Tensor:
    """``BloomMLP.forward``."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.intermediate_size)
    x = bloom_gelu(f.t, f.linear("mlp.dense_h_to_4h", x, shape, bias=True, split="column"))
    out = f.linear("mlp.dense_4h_to_h", x, shape[::-1], bias=True, split="row")
    dropped = f.dropout(out, spec.hidden_dropout)
    return f.add(residual, f.sublayer("mlp", dropped, entered))


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("ln_f", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def shared_tensors(f: Forward) -> Shareds:
    """The bias [batch · heads, 1, keys] and the mask."""
    heads = f.spec.num_attention_heads
    keys = f.seq + f.how.method.prefix_tokens
    alibi = Shared(numel=f.batch * keys * heads, itemsize=f.how.stream_bytes, saved=False)
    slopes = local(heads, FP32_BYTES)
    return {"alibi": alibi, "slopes": slopes, **held_lookup(f), **mask(f, always=True)}


def held_lookup(f: Forward) -> Shareds:
    """``inputs_embeds`` of ``BloomModel.forward``, where the norm behind it keeps nothing."""
    trains = f.how.method.trains
    kept = trains("embed_tokens.weight", "embedding", -1) or any(
        trains(f"word_embeddings_layernorm.{part}", "norm", -1) for part in ("weight", "bias")
    )
    return {} if kept or f.input_gradients else token_lookup(f)


def compose(spec: ModelSpec) -> Composition:
    """``BloomForCausalLM``."""
    names = ("transformer.word_embeddings", "transformer.h")
    made = model(spec, names, (embed, block, head), shared_tensors)
    return only_eager(holding_outputs(made))
