"""StableLM 3B, Zephyr and 2: layer norms, partial rotary embeddings, a gated MLP."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_neox import shared_tensors
from vram_plan.estimator.blocks.gpt_parts import Inputs, attend, embed_tokens, model
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.blocks.llama import gated_mlp
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import concat, relayout
from vram_plan.estimator.ops.partial_rotary import rotate_part_held
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``StableLmDecoderLayer.forward``, transformers 5.23.0 ``models/stablelm/``."""
    spec = f.spec
    hidden = spec.hidden_size
    residual = x
    x = f.layer_norm("input_layernorm", x, hidden)
    attended = attention(f, x, shared)
    if spec.use_parallel_residual:
        forwarded = f.dropout(gated_mlp(f, x), spec.hidden_dropout)
        return f.add(f.add(residual, attended), forwarded)
    residual = f.add(residual, attended)
    forwarded = gated_mlp(f, f.layer_norm("post_attention_layernorm", residual, hidden))
    forwarded = f.dropout(forwarded, spec.hidden_dropout)
    return f.add(residual, forwarded)


def attention(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``StableLmAttention.forward``: slices keep queries and keys as projected until it returns."""
    spec, entered, t = f.spec, x, f.t
    hidden, bias = spec.hidden_size, spec.attention_bias
    q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), bias=bias, split="column")
    k = f.linear("self_attn.k_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    v = f.linear("self_attn.v_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    q, k = relayout(t, q), relayout(t, k)
    if spec.qk_norm != "none":
        q = per_head_norms(f, "self_attn.q_layernorm", q, spec.num_attention_heads)
        k = per_head_norms(f, "self_attn.k_layernorm", k, spec.num_key_value_heads)
    share = spec.rotary_dim / spec.head_dim
    q, k, held = rotate_part_held(t, q, k, share, shared["cos"], shared["sin"])
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_softmax=True, copied="v"))
    out = f.linear("self_attn.o_proj", out, (spec.query_dim, hidden), split="row")
    del held
    return f.sublayer("attention", out, entered)


def per_head_norms(f: Forward, name: str, x: Tensor, heads: int) -> Tensor:
    """``StableLmLayerNormPerHead``: a norm without bias for every head, joined again."""
    heads //= f.how.tensor
    parts = split(f.t, x, (x.numel // heads,) * heads)
    width = f.spec.head_dim
    return concat(
        f.t,
        tuple(
            f.layer_norm(f"{name}.norms.{head}", part, width, bias=False)
            for head, part in enumerate(parts)
        ),
    )


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``StableLmForCausalLM``."""
    names = ("model.embed_tokens", "model.layers")
    return model(spec, names, (embed_tokens, layer, head), shared_tensors)
