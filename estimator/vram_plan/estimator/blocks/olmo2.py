"""OLMo 2: norms behind the sublayers and on whole queries and keys."""

from collections.abc import Mapping
from functools import partial

from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.blocks.llama import (
    attend,
    decoder,
    gated_mlp,
    projected,
    rotary_tables,
    value,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, relayout
from vram_plan.estimator.ops.rotary import rotate_wide
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Olmo2DecoderLayer.forward``, transformers 5.23.0 ``models/olmo2/modeling_olmo2.py``."""
    width, residual = f.spec.hidden_size, x
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.rms_norm_wide("post_attention_layernorm", x, width)
    x = f.add(residual, x)
    residual = x
    x = gated_mlp(f, x)
    x = f.rms_norm_wide("post_feedforward_layernorm", x, width)
    return f.add(residual, x)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``Olmo2Attention.forward``."""
    spec, t, entered = f.spec, f.t, x
    q = projected(f, "q_proj", x, spec.query_dim)
    q = f.rms_norm_wide("self_attn.q_norm", q, spec.query_dim // f.how.tensor)
    k = projected(f, "k_proj", x, spec.kv_dim)
    k = f.rms_norm_wide("self_attn.k_norm", k, spec.kv_dim // f.how.tensor)
    v = value(f, x)
    q, k = relayout(t, q), relayout(t, k)
    q, k = rotate_wide(t, q, cos, sin), rotate_wide(t, k, cos, sin)
    return attend(f, q, k, v, entered)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.rms_norm_wide("norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``Olmo2ForCausalLM``: cos and sin stay in fp32."""
    return decoder(spec, layer, head=head, shared=partial(rotary_tables, itemsize=FP32_BYTES))
