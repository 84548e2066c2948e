"""MPT: no biases at all, distances as an fp32 bias that makes the scores fp32."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    Shareds,
    embed_tokens,
    holding_outputs,
    model,
    only_eager,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import batched_product, softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, add, cast, clamp, copy, scale
from vram_plan.estimator.ops.scores import Written, factor, low
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def block(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``MptBlock.forward``, transformers 5.23.0 ``models/mpt/modeling_mpt.py``."""
    hidden = f.spec.hidden_size
    normed = f.layer_norm("norm_1", x, hidden, bias=False)
    residual = x
    attended, weights = attention(f, normed)
    f.held = weights
    x = f.add(f.dropout(attended, f.spec.hidden_dropout), residual)
    normed = f.layer_norm("norm_2", x, hidden, bias=False)
    return mlp(f, normed, x)


def attention(f: Forward, x: Tensor) -> tuple[Tensor, Tensor]:
    """``MptAttention.forward``."""
    spec, entered, t = f.spec, x, f.t
    hidden = spec.hidden_size
    fused = f.linear("attn.Wqkv", x, (hidden, 3 * hidden), split="column")
    if spec.clip_qkv:
        fused = clamp(t, fused)
    third = fused.numel // 3
    q, k, v = split(t, fused, (third, third, third))
    k, v = f.how.method.keys_values(f, k, v)
    out, weights, scores = written(f, q, k, v)
    out = f.linear("attn.out_proj", out, (hidden, hidden), split="row")
    del fused, scores  # local variables of its own
    return f.sublayer("attention", out, entered), weights


def written(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores plus an fp32 bias, masked, through the softmax; the probabilities and the scores."""
    t, s, how = f.t, f.heads(), Written(autocast=f.how.autocast)
    factors = factor(t, q, s, how, "q"), factor(t, k, s, how, "k")
    scores = batched_product(t, *factors, s.scores, s.head_dim)
    del factors
    scores = scale(t, scores)
    scores = add(t, scores, Tensor(0, FP32_BYTES, None))
    scores = scale(t, scores)  # masked_fill: a new tensor, and one more for the gradient
    weights = cast(t, softmax(t, scores, FP32_BYTES, half_to_float=False), v.itemsize)
    weights = f.dropout(weights, s.dropout)
    numel = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, low(t, weights, how), factor(t, v, s, how, "v"), numel, s.kv_seq)
    return copy(t, out), weights, scores


def mlp(f: Forward, x: Tensor, residual: Tensor) -> Tensor:
    """``MptMLP.forward``."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.intermediate_size)
    x = f.act(f.linear("ffn.up_proj", x, shape, split="column"))
    out = f.linear("ffn.down_proj", x, shape[::-1], split="row")
    dropped = f.dropout(out, spec.hidden_dropout)
    return f.add(f.sublayer("mlp", dropped, entered), residual)


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("norm_f", x.moved(), f.spec.hidden_size, bias=False)
    return causal_lm_loss(f, x)


def shared_tensors(f: Forward) -> Shareds:
    """The bias [heads, 1, longest sequence] in fp32 and a boolean mask [batch, 1, seq, seq]."""
    heads, longest = f.spec.num_attention_heads, f.spec.max_position_embeddings
    return {
        "alibi": Shared(numel=heads * longest, itemsize=FP32_BYTES, saved=False),
        "mask": Shared(numel=f.batch * f.seq * f.seq, itemsize=1),
    }


def compose(spec: ModelSpec) -> Composition:
    """``MptForCausalLM``."""
    names = ("transformer.wte", "transformer.blocks")
    made = model(spec, names, (embed_tokens, block, head), shared_tensors)
    return only_eager(holding_outputs(made))
