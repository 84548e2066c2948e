"""Phi-1, 1.5 and 2: side by side behind one norm, partial rotary embeddings, biases everywhere."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_neox import shared_tensors
from vram_plan.estimator.blocks.gpt_parts import Inputs, attend, embed_tokens, model
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.partial_rotary import rotate_part_held
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``PhiDecoderLayer.forward``, transformers 5.23.0 ``models/phi/modeling_phi.py``."""
    spec = f.spec
    residual = x
    x = f.layer_norm("input_layernorm", x, spec.hidden_size)
    attended = attention(f, x, shared)
    attended = f.dropout(attended, spec.hidden_dropout)
    forwarded = f.dropout(mlp(f, x), spec.hidden_dropout)
    return f.add(f.add(attended, forwarded), residual)


def attention(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``PhiAttention.forward``: slices keep queries and keys as projected until it returns."""
    spec, entered, t = f.spec, x, f.t
    hidden = spec.hidden_size
    q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), bias=True, split="column")
    k = f.linear("self_attn.k_proj", x, (hidden, spec.kv_dim), bias=True, split="column")
    v = f.linear("self_attn.v_proj", x, (hidden, spec.kv_dim), bias=True, split="column")
    q, k = relayout(t, q), relayout(t, k)
    if spec.qk_norm != "none":
        q = f.layer_norm("self_attn.q_layernorm", q, spec.head_dim)
        k = f.layer_norm("self_attn.k_layernorm", k, spec.head_dim)
    share = spec.rotary_dim / spec.head_dim
    q, k, held = rotate_part_held(t, q, k, share, shared["cos"], shared["sin"])
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_softmax=True, copied="v"))
    out = f.linear("self_attn.dense", out, (spec.query_dim, hidden), bias=True, split="row")
    del held
    return f.sublayer("attention", out, entered)


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``PhiMLP.forward``."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.intermediate_size)
    x = f.linear("mlp.fc1", x, shape, bias=True, split="column")
    x = f.act(x)
    x = f.linear("mlp.fc2", x, shape[::-1], bias=True, split="row")
    return f.sublayer("mlp", x, entered)


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("final_layernorm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``PhiForCausalLM``."""
    names = ("model.embed_tokens", "model.layers")
    return model(spec, names, (embed_tokens, layer, head), shared_tensors)
