"""SantaCoder and StarCoder: GPT-2 whose query heads share one key and value head."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt2 import head
from vram_plan.estimator.blocks.gpt_parts import (
    Shareds,
    attend,
    embed_positions,
    learned_positions,
    model,
    pre_norm_block,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def attention(f: Forward, x: Tensor) -> Tensor:
    """``GPTBigCodeAttention.forward``: one projection, by heads where each has its own keys."""
    spec, entered = f.spec, x
    hidden, kv = spec.hidden_size, spec.kv_dim
    fused = f.linear("attn.c_attn", x, (hidden, hidden + 2 * kv), bias=True, split="column")
    if f.checkpointed and f.how.keeps_presents:
        # Keys and values are views of the whole projection.
        f.cache["present"] = Tensor(fused.numel, fused.itemsize, fused.storage)
    if spec.num_key_value_heads > 1:
        fused = relayout(f.t, fused)
    parts = tuple(fused.numel * width // (hidden + 2 * kv) for width in (hidden, kv, kv))
    q, k, v = split(f.t, fused, parts)
    q.by_token = spec.num_key_value_heads == 1  # else ``fused`` was, and a part of it is no copy
    del fused
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_softmax=True))
    out = f.linear("attn.c_proj", out, (hidden, hidden), bias=True, split="row")
    out = f.dropout(out, spec.hidden_dropout)
    return f.sublayer("attention", out, entered)


block = pre_norm_block(attention)


def shared_tensors(f: Forward) -> Shareds:
    """Positions, the mask, and one boolean triangle of the longest sequence."""
    rows = f.spec.max_position_embeddings
    return {"buffers": Shared(numel=rows * rows, itemsize=1, buffer=True), **learned_positions(f)}


def compose(spec: ModelSpec) -> Composition:
    """``GPTBigCodeForCausalLM``, transformers 5.23.0 ``models/gpt_bigcode/``."""
    names = ("transformer.wte", "transformer.h")
    return model(spec, names, (embed_positions, block, head), shared_tensors)
