"""GLM-4-9B in transformers' classes: Phi-3's feed-forward part, half of each head rotated."""

from collections.abc import Mapping
from dataclasses import replace

from vram_plan.estimator.blocks.llama import (
    attend,
    decoder,
    key,
    query,
    rotary_tables,
    value,
)
from vram_plan.estimator.blocks.phi3 import fused_mlp, rotated
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.rotary import rotate_part
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GlmDecoderLayer.forward``, transformers 5.23.0 ``models/glm/modeling_glm.py``."""
    width, residual = f.spec.hidden_size, x
    x = f.rms_norm("input_layernorm", x, width)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, width)
    x = fused_mlp(f, x)
    return f.add(residual, x)


def layer4(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Glm4DecoderLayer.forward``, ``models/glm4/modeling_glm4.py``: two norms more."""
    width, residual = f.spec.hidden_size, x
    x = f.rms_norm("input_layernorm", x, width)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.rms_norm("post_self_attn_layernorm", x, width)
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, width)
    x = fused_mlp(f, x)
    x = f.rms_norm("post_mlp_layernorm", x, width)
    return f.add(residual, x)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``GlmAttention.forward``: every layer interleaves cos and sin anew."""
    t, entered = f.t, x
    q, k = query(f, x), key(f, x)
    v = value(f, x)
    cos, sin = t.new(cos.numel, cos.itemsize), t.new(sin.numel, sin.itemsize)
    q = rotate_part(t, q, cos, sin, rotated(f, q.numel))
    k = rotate_part(t, k, cos, sin, rotated(f, k.numel))
    del cos, sin
    return attend(f, q, k, v, entered)


def passing_tables(f: Forward) -> dict[str, Shared]:
    """Tables of cos and sin of the model, which no layer saves."""
    tables = rotary_tables(f)
    return tables | {name: replace(tables[name], saved=False) for name in ("cos", "sin")}


def compose(spec: ModelSpec) -> Composition:
    """``GlmForCausalLM`` and ``Glm4ForCausalLM``."""
    chosen = layer4 if spec.model_type == "glm4" else layer
    return decoder(spec, chosen, shared=passing_tables)
