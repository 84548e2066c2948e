"""Gemma 3, the language model: Gemma 2 with norms on query and key heads, five windows to one."""

from collections.abc import Mapping
from dataclasses import replace

from vram_plan.estimator.blocks.gemma2 import decoder_layer, head
from vram_plan.estimator.blocks.heads import scaled_embedding
from vram_plan.estimator.blocks.llama import (
    attend,
    decoder,
    key,
    layers_of,
    query,
    rotary_tables,
    value,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``Gemma3Attention.forward``, transformers 5.23.0 ``models/gemma3/modeling_gemma3.py``."""
    width, entered = f.spec.head_dim, x
    q, k = query(f, x), key(f, x)
    v = value(f, x)
    q = f.rms_norm_wide("self_attn.q_norm", q, width, centered=True)
    k = f.rms_norm_wide("self_attn.k_norm", k, width, centered=True)
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    return attend(f, q, k, v, entered)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """One layer."""
    return decoder_layer(f, x, shared["cos"], shared["sin"], self_attention)


def local_tables(f: Forward) -> dict[str, Shared]:
    """Tables of cos and sin for either kind of layer: their bases differ."""
    found = rotary_tables(f)
    if len(set(f.spec.layer_types)) > 1:
        wide, near = (layers_of(f.spec, windowed=windowed) for windowed in (False, True))
        for name in ("cos", "sin"):
            table = found[name]
            found[name] = replace(table, layers=wide)
            found[f"local_{name}"] = replace(table, layers=near)
    return found


def compose(spec: ModelSpec) -> Composition:
    """``Gemma3ForCausalLM``."""
    return decoder(spec, layer, head=head, embed=scaled_embedding, shared=local_tables)
