"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections into attention and feed-forward part."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.llama import attend, decoder
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import narrow, relayout
from vram_plan.estimator.ops.rotary import rotate_part
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Phi3DecoderLayer.forward``, transformers 5.23.0 ``models/phi3/modeling_phi3.py``."""
    spec, residual = f.spec, x
    x = f.rms_norm("input_layernorm", x, spec.hidden_size)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, f.dropout(x, spec.hidden_dropout))
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, spec.hidden_size)
    x = fused_mlp(f, x)
    return f.add(residual, f.dropout(x, spec.hidden_dropout))


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``Phi3Attention.forward``: slices of one projection, a part of each head rotated."""
    spec, t, entered = f.spec, f.t, x
    width = spec.query_dim + 2 * spec.kv_dim
    fused = f.linear("self_attn.qkv_proj", x, (spec.hidden_size, width), split="column")
    query, key = fused.numel * spec.query_dim // width, fused.numel * spec.kv_dim // width
    slices = narrow(t, fused, query), narrow(t, fused, key), narrow(t, fused, key)
    q, k, v = (relayout(t, part) for part in slices)
    q = rotate_part(t, q, cos, sin, rotated(f, query))
    k = rotate_part(t, k, cos, sin, rotated(f, key))
    return attend(f, q, k, v, entered)


def rotated(f: Forward, numel: int) -> int:
    """How many of ``numel`` elements in heads are rotated."""
    return numel // f.spec.head_dim * f.spec.rotary_dim


def fused_mlp(f: Forward, x: Tensor) -> Tensor:
    """``Phi3MLP.forward``: gate and up in one projection, chunked."""
    spec = f.spec
    hidden, inner = spec.hidden_size, spec.intermediate_size
    fused = f.linear("mlp.gate_up_proj", x, (hidden, 2 * inner), split="column")
    gate, up = split(f.t, fused, (fused.numel // 2, fused.numel // 2))
    del fused
    up = f.mul(up, f.act(gate))
    out = f.linear("mlp.down_proj", up, (inner, hidden), split="row")
    return f.sublayer("mlp", out, x)


def compose(spec: ModelSpec) -> Composition:
    """``Phi3ForCausalLM``."""
    return decoder(spec, layer)
