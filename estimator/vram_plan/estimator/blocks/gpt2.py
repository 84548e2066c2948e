"""GPT-2: learned positions, a fused projection to q, k and v, GELU written out."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    attend,
    embed_positions,
    learned_positions,
    model,
    pre_norm_block,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def attention(f: Forward, x: Tensor) -> Tensor:
    """``GPT2Attention.forward``: one projection, split in three."""
    spec, entered = f.spec, x
    hidden = spec.hidden_size
    fused = f.linear("attn.c_attn", x, (hidden, 3 * hidden), bias=True, split="column")
    third = fused.numel // 3
    q, k, v = split(f.t, fused, (third, third, third))
    del fused
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written())
    out = f.linear("attn.c_proj", out, (hidden, hidden), bias=True, split="row")
    out = f.dropout(out, spec.hidden_dropout)
    return f.sublayer("attention", out, entered)


block = pre_norm_block(attention)


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("ln_f", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``GPT2LMHeadModel``, transformers 5.23.0 ``models/gpt2/modeling_gpt2.py``."""
    names = ("transformer.wte", "transformer.h")
    return model(spec, names, (embed_positions, block, head), learned_positions)
