"""OLMo 1: Llama with LayerNorms that have no weights, and clamped queries, keys and values."""

from collections.abc import Mapping
from functools import partial

from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.blocks.llama import (
    attend,
    decoder,
    gated_mlp,
    projected,
    rotary_tables,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, clamp_in_place, relayout
from vram_plan.estimator.ops.norm import layer_norm
from vram_plan.estimator.ops.rotary import rotate_wide
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def norm(f: Forward, x: Tensor) -> Tensor:
    """``OlmoLayerNorm``: in fp32, cast back."""
    itemsize = x.itemsize
    wide = layer_norm(f.t, cast(f.t, x, FP32_BYTES), None, None, f.spec.hidden_size)
    return cast(f.t, wide, itemsize)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``OlmoDecoderLayer.forward``, transformers 5.23.0 ``models/olmo/modeling_olmo.py``."""
    residual = x
    x = norm(f, x)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = norm(f, x)
    x = gated_mlp(f, x)
    return f.add(residual, x)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``OlmoAttention.forward``: the clamps write in place and keep what they read."""
    spec, t, entered = f.spec, f.t, x
    q = projected(f, "q_proj", x, spec.query_dim)
    k = projected(f, "k_proj", x, spec.kv_dim)
    v = projected(f, "v_proj", x, spec.kv_dim)
    if spec.clip_qkv:
        q, k, v = clamp_in_place(t, q), clamp_in_place(t, k), clamp_in_place(t, v)
    q, k, v = relayout(t, q), relayout(t, k), relayout(t, v)
    q, k = rotate_wide(t, q, cos, sin), rotate_wide(t, k, cos, sin)
    return attend(f, q, k, v, entered)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = norm(f, x.moved())
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``OlmoForCausalLM``: cos and sin stay in fp32."""
    return decoder(spec, layer, head=head, shared=partial(rotary_tables, itemsize=FP32_BYTES))
