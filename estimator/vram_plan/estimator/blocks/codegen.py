"""CodeGen: GPT-J with one projection whose parts are copied, and rotary embeddings in fp32."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    attend,
    embed_tokens,
    holding_outputs,
    model,
    only_eager,
    plain_mlp,
)
from vram_plan.estimator.blocks.gptj import head, shared_tensors
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, copy
from vram_plan.estimator.ops.interleaved_rotary import rotate_pairs_part
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

_PARTS = 4
"""The projection's rows come in this many parts (``mp_num``), each with queries, values, keys."""


def block(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``CodeGenBlock.forward``, transformers 5.23.0 ``models/codegen/modeling_codegen.py``."""
    residual = x
    x = f.layer_norm("ln_1", x, f.spec.hidden_size)
    attended = attention(f, x)
    forwarded = plain_mlp(f, x, ("mlp.fc_in", "mlp.fc_out"))
    return f.add(f.add(attended, forwarded), residual)


def attention(f: Forward, x: Tensor) -> Tensor:
    """``CodeGenAttention.forward``: an fp32 table of sines and cosines makes q and k fp32."""
    spec, entered, t = f.spec, x, f.t
    hidden = spec.hidden_size
    fused = f.linear("attn.qkv_proj", x, (hidden, 3 * hidden), split="column")
    third = fused.numel // 3
    q, v, k = split(t, fused, (third, third, third))
    if spec.num_attention_heads > _PARTS:  # else merging the parts' heads is a view
        q, k, v = copy(t, q), copy(t, k), copy(t, v)
    half = t.new(f.seq * spec.rotary_dim, FP32_BYTES)
    half = half.view(half.numel // 2)
    share = spec.rotary_dim / spec.head_dim
    k, k_parts = rotate_pairs_part(t, k, share, half)
    q, q_parts = rotate_pairs_part(t, q, share, half)
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_products=True, scaling="after"))
    out = f.linear("attn.out_proj", out, (hidden, hidden), split="row")
    out = f.dropout(out, spec.hidden_dropout)
    del fused, k_parts, q_parts
    return f.sublayer("attention", out, entered)


def compose(spec: ModelSpec) -> Composition:
    """``CodeGenForCausalLM``."""
    names = ("transformer.wte", "transformer.h")
    return only_eager(
        holding_outputs(model(spec, names, (embed_tokens, block, head), shared_tensors))
    )
