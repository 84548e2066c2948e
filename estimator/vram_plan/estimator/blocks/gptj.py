"""GPT-J: one norm, attention and feed-forward side by side, interleaved rotary embeddings."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    Inputs,
    Shareds,
    attend,
    embed_tokens,
    held_embeddings,
    holding_outputs,
    mask,
    model,
    plain_mlp,
    position_ids,
    without_sdpa,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, copy
from vram_plan.estimator.ops.interleaved_rotary import rotate_pairs_part
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

INDEX_BYTES = 8


def block(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``GPTJBlock.forward``, transformers 5.23.0 ``models/gptj/modeling_gptj.py``."""
    residual = x
    x = f.layer_norm("ln_1", x, f.spec.hidden_size)
    attended = attention(f, x)
    forwarded = plain_mlp(f, x, ("mlp.fc_in", "mlp.fc_out"))
    return f.add(f.add(attended, forwarded), residual)


def attention(f: Forward, x: Tensor) -> Tensor:
    """``GPTJAttention.forward``: the slices keep queries and keys as projected alive."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.query_dim)
    q = f.linear("attn.q_proj", x, shape, split="column")
    k = f.linear("attn.k_proj", x, shape, split="column")
    v = f.linear("attn.v_proj", x, shape, split="column")
    positions, table = _table(f, q.itemsize)
    half = table.view(table.numel // 2)
    share = spec.rotary_dim / spec.head_dim
    k, k_parts = rotate_pairs_part(f.t, k, share, half)
    q, q_parts = rotate_pairs_part(f.t, q, share, half)
    k, v = f.how.method.keys_values(f, k, v)
    if f.how.attention == "flash" and f.how.method.prefix_tokens:
        k, v = copy(f.t, k), copy(f.t, v)  # behind their prefix they lie by heads: ``contiguous``
    out = attend(f, q, k, v, Written(wide_products=True))
    out = f.linear("attn.out_proj", out, shape[::-1], split="row")
    out = f.dropout(out, spec.hidden_dropout)
    del positions, k_parts, q_parts
    return f.sublayer("attention", out, entered)


def _table(f: Forward, itemsize: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """``sincos`` [1, seq, rotary_dim]: gathered from a copy of the buffer in every layer."""
    t, width = f.t, f.spec.rotary_dim
    copied = t.new(f.spec.max_position_embeddings * width, FP32_BYTES)
    index = t.new(f.seq * width, INDEX_BYTES)
    return (copied, index), cast(t, t.new(f.seq * width, FP32_BYTES), itemsize)


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.layer_norm("ln_f", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def shared_tensors(f: Forward) -> Shareds:
    """Position ids, the mask, and the table of sines and cosines that every layer holds."""
    spec = f.spec
    numel = spec.num_hidden_layers * spec.max_position_embeddings * spec.rotary_dim
    tables = Shared(numel=numel, itemsize=FP32_BYTES, buffer=True)
    return {"buffers": tables, **position_ids(f), **held_embeddings(f), **mask(f)}


def compose(spec: ModelSpec) -> Composition:
    """``GPTJForCausalLM``."""
    names = ("transformer.wte", "transformer.h")
    return without_sdpa(
        holding_outputs(model(spec, names, (embed_tokens, block, head), shared_tensors))
    )
