"""Qwen3: Llama with a norm on every query and key head."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.llama import attend, decoder, decoder_layer, key, query, value
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``Qwen3Attention.forward``, transformers 5.23.0 ``models/qwen3/modeling_qwen3.py``."""
    width, entered = f.spec.head_dim, x
    q = f.rms_norm("self_attn.q_norm", query(f, x), width)
    k = f.rms_norm("self_attn.k_norm", key(f, x), width)
    v = value(f, x)
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    return attend(f, q, k, v, entered)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``Qwen3DecoderLayer.forward``."""
    return decoder_layer(f, x, shared["cos"], shared["sin"], attention=self_attention)


def compose(spec: ModelSpec) -> Composition:
    """``Qwen3ForCausalLM``."""
    return decoder(spec, layer)
