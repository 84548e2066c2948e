"""Qwen 1: a fused projection with biases, heads that are never transposed, SwiGLU without a bias.

Qwen/Qwen-7B ``modeling_qwen.py`` (beside the weights on huggingface.co), without the optional fused
rotary and norm kernels of flash_attn. Attention that is not ``flash`` is PyTorch's with a mask.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import late_shift_loss, token_embedding
from vram_plan.estimator.blocks.phi3 import rotated
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.rotary_pairs import rotate_part_in_fp32
from vram_plan.estimator.ops.sdpa import sdpa
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embed(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The lookup and its dropout."""
    return f.dropout(token_embedding(f, ids, shared), f.spec.embedding_dropout)


def block(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``QWenBlock.forward``."""
    normed = f.rms_norm("ln_1", x, f.spec.hidden_size)
    attended = self_attention(f, normed, shared["cos"], shared["sin"])
    x = f.add(attended, x)
    normed = f.rms_norm("ln_2", x, f.spec.hidden_size)
    forwarded = mlp(f, normed)
    return f.add(x, forwarded)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``QWenAttention.forward``."""
    spec, t, entered = f.spec, f.t, x
    hidden = spec.hidden_size
    fused = f.linear("attn.c_attn", x, (hidden, 3 * spec.query_dim), bias=True, split="column")
    third = fused.numel // 3
    q, k, v = split(t, fused, (third, third, third))
    q = rotate_part_in_fp32(t, q, cos, sin, rotated(f, third))
    k = rotate_part_in_fp32(t, k, cos, sin, rotated(f, third))
    k, v = f.how.method.keys_values(f, k, v)
    if f.how.attention == "flash":
        out = f.attention(q, k, v)
    else:
        out = sdpa(t, q, k, v, f.heads(), mask=t.new(f.seq * f.seq, 1))
    shape = (spec.query_dim, hidden)
    out = f.linear("attn.c_proj", out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered)


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``QWenMLP.forward``: w1(x) · silu(w2(x))."""
    spec, bias = f.spec, f.spec.mlp_bias
    shape = (spec.hidden_size, spec.intermediate_size)
    value = f.linear("mlp.w1", x, shape, bias=bias, split="column")
    gate = f.linear("mlp.w2", x, shape, bias=bias, split="column")
    inner = f.mul(value, f.act(gate))
    out = f.linear("mlp.c_proj", inner, shape[::-1], bias=bias, split="row")
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss in the logits' dtype."""
    x = f.rms_norm("ln_f", x.moved(), f.spec.hidden_size)
    return late_shift_loss(f, x, wide=False)


def tables(f: Forward) -> dict[str, Shared]:
    """Tables of cos and sin [1, seq, 1, rotary_dim] in fp32."""
    table = Shared(numel=f.seq * f.spec.rotary_dim, itemsize=FP32_BYTES)
    return {"cos": table, "sin": table}


def compose(spec: ModelSpec) -> Composition:
    """``QWenLMHeadModel``."""
    return Composition(
        segments=(
            Segment(name="transformer.wte", kind="embedding", run=embed),
            Segment(
                name="transformer.h", kind="layer", run=block, count=spec.num_hidden_layers, first=0
            ),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=tables,
    )
