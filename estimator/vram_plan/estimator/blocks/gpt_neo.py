"""GPT-Neo: fp32 scores without scaling, windows as a boolean buffer in every layer."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt2 import head
from vram_plan.estimator.blocks.gpt_parts import (
    Shareds,
    attend,
    embed_positions,
    holding_outputs,
    learned_positions,
    model,
    pre_norm_block,
    without_sdpa,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def attention(f: Forward, x: Tensor) -> Tensor:
    """``GPTNeoSelfAttention.forward``; local and global layers cost the same."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.hidden_size)
    q = f.linear("attn.attention.q_proj", x, shape, split="column")
    k = f.linear("attn.attention.k_proj", x, shape, split="column")
    v = f.linear("attn.attention.v_proj", x, shape, split="column")
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_products=True, scaling="never", chosen=True))
    out = f.linear("attn.attention.out_proj", out, shape, bias=True, split="row")
    out = f.dropout(out, spec.hidden_dropout)
    return f.sublayer("attention", out, entered)


block = pre_norm_block(attention)


def shared_tensors(f: Forward) -> Shareds:
    """Positions, the mask, and in every layer a boolean triangle of the longest sequence."""
    rows = f.spec.max_position_embeddings
    triangles = Shared(numel=f.spec.num_hidden_layers * rows * rows, itemsize=1, buffer=True)
    return {"buffers": triangles, **learned_positions(f)}


def compose(spec: ModelSpec) -> Composition:
    """``GPTNeoForCausalLM``, transformers 5.23.0 ``models/gpt_neo/modeling_gpt_neo.py``."""
    names = ("transformer.wte", "transformer.h")
    return without_sdpa(
        holding_outputs(model(spec, names, (embed_positions, block, head), shared_tensors))
    )
