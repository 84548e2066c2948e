"""GPT-NeoX, Pythia and the first StableLM: a fused projection, partial rotary embeddings."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    Shareds,
    attend,
    embed_tokens,
    held_embeddings,
    mask,
    model,
    plain_mlp,
    position_ids,
    rotary_tables,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.partial_rotary import rotate_part
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``GPTNeoXLayer.forward``, transformers 5.23.0 ``models/gpt_neox/modeling_gpt_neox.py``."""
    hidden = f.spec.hidden_size
    attended = attention(f, f.layer_norm("input_layernorm", x, hidden), shared)
    attended = f.dropout(attended, f.spec.hidden_dropout)
    if f.spec.use_parallel_residual:
        forwarded = mlp(f, f.layer_norm("post_attention_layernorm", x, hidden))
        return f.add(f.add(forwarded, attended), x)
    attended = f.add(attended, x)
    forwarded = mlp(f, f.layer_norm("post_attention_layernorm", attended, hidden))
    return f.add(forwarded, attended)


def attention(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``GPTNeoXAttention.forward``."""
    spec, entered, t = f.spec, x, f.t
    hidden, bias = spec.hidden_size, spec.attention_bias
    name = "attention.query_key_value"
    fused = f.linear(name, x, (hidden, 3 * hidden), bias=bias, split="column")
    third = fused.numel // 3
    q, k, v = split(t, relayout(t, fused), (third, third, third))
    del fused
    share = spec.rotary_dim / spec.head_dim
    cos, sin = shared["cos"], shared["sin"]
    turned = rotate_part(t, q, share, cos, sin), rotate_part(t, k, share, cos, sin)
    q, k = turned
    del turned
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_softmax=True, copied="v"))
    out = f.linear(
        "attention.dense", out, (hidden, hidden), bias=spec.attention_out_bias, split="row"
    )
    return f.sublayer("attention", out, entered)


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``GPTNeoXMLP.forward``."""
    return plain_mlp(f, x, ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"))


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("final_layer_norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def shared_tensors(f: Forward) -> Shareds:
    """Tables of cos and sin, position ids, the mask of eager attention."""
    return {**rotary_tables(f), **position_ids(f), **held_embeddings(f), **mask(f)}


def compose(spec: ModelSpec) -> Composition:
    """``GPTNeoXForCausalLM``."""
    names = ("gpt_neox.embed_in", "gpt_neox.layers")
    return model(spec, names, (embed_tokens, layer, head), shared_tensors)
