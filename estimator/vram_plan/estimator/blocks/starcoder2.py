"""StarCoder2: layer norms and biases, rotary embeddings, grouped keys, a plain MLP."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    Shareds,
    attend_in_window,
    embed_tokens,
    held_embeddings,
    model,
    plain_mlp,
    position_ids,
    rotary_tables,
    window_mask,
)
from vram_plan.estimator.blocks.stablelm import head
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``Starcoder2DecoderLayer.forward``, transformers 5.23.0 ``models/starcoder2/``."""
    hidden = f.spec.hidden_size
    residual = x
    x = f.layer_norm("input_layernorm", x, hidden)
    x = attention(f, x, shared)
    x = f.add(residual, x)
    residual = x
    x = f.layer_norm("post_attention_layernorm", x, hidden)
    x = plain_mlp(f, x, ("mlp.c_fc", "mlp.c_proj"))
    return f.add(residual, x)


def attention(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``Starcoder2Attention.forward``."""
    spec, entered, t = f.spec, x, f.t
    hidden, bias = spec.hidden_size, spec.attention_bias
    q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), bias=bias, split="column")
    k = f.linear("self_attn.k_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    v = f.linear("self_attn.v_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    q, k = relayout(t, q), relayout(t, k)
    cos, sin = shared["cos"], shared["sin"]
    q, k = rotate(t, q, cos, sin), rotate(t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out = attend_in_window(f, q, k, v, Written(wide_softmax=True), shared)
    out = f.linear(
        "self_attn.o_proj", out, (spec.query_dim, hidden), bias=spec.attention_out_bias, split="row"
    )
    out = f.dropout(out, spec.hidden_dropout)
    return f.sublayer("attention", out, entered)


def shared_tensors(f: Forward) -> Shareds:
    """Tables of cos and sin, position ids, the mask of eager attention or of a window."""
    return {**rotary_tables(f), **position_ids(f), **held_embeddings(f), **window_mask(f)}


def compose(spec: ModelSpec) -> Composition:
    """``Starcoder2ForCausalLM``."""
    names = ("model.embed_tokens", "model.layers")
    return model(spec, names, (embed_tokens, layer, head), shared_tensors)
