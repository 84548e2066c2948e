"""GPT-2: learned positions, a fused projection to q, k and v, GELU written out."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.gpt_parts import (
    lent,
    position_inputs,
    written_attention,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss, token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embed(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """Tokens plus positions; ``GPT2Model.forward`` holds both until its last layer has run."""
    spec = f.spec
    inputs = lent(token_embedding(f, ids, shared))
    rows = spec.position_embedding_rows
    positions = lent(f.embedding("wpe", shared["position_ids"], rows, spec.hidden_size))
    x = f.add(inputs, positions)
    return f.dropout(x, spec.embedding_dropout)


def block(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GPT2Block.forward``, transformers 5.23.0 ``models/gpt2/modeling_gpt2.py``."""
    hidden = f.spec.hidden_size
    residual = x
    x = f.layer_norm("ln_1", x, hidden)
    attended = attention(f, x)
    x = f.add(attended, residual)
    residual = x
    x = f.layer_norm("ln_2", x, hidden)
    forwarded = mlp(f, x)
    return f.add(residual, forwarded)


def attention(f: Forward, x: Tensor) -> Tensor:
    """``GPT2Attention.forward``: one projection, split in three."""
    spec, entered = f.spec, x
    hidden = spec.hidden_size
    fused = f.linear("attn.c_attn", x, (hidden, 3 * hidden), bias=True, split="column")
    third = fused.numel // 3
    q, k, v = split(f.t, fused, (third, third, third))
    del fused
    k, v = f.how.method.keys_values(f, k, v)
    out = written_attention(f, q, k, v, Written())
    out = f.linear("attn.c_proj", out, (hidden, hidden), bias=True, split="row")
    out = f.dropout(out, spec.hidden_dropout)
    return f.sublayer("attention", out, entered)


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``GPT2MLP.forward``."""
    spec, entered = f.spec, x
    shape = (spec.hidden_size, spec.intermediate_size)
    x = f.linear("mlp.c_fc", x, shape, bias=True, split="column")
    x = f.act(x)
    x = f.linear("mlp.c_proj", x, shape[::-1], bias=True, split="row")
    x = f.dropout(x, spec.hidden_dropout)
    return f.sublayer("mlp", x, entered)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    return causal_lm_loss(f, f.layer_norm("ln_f", x, f.spec.hidden_size))


def compose(spec: ModelSpec) -> Composition:
    """``GPT2LMHeadModel``."""
    return Composition(
        segments=(
            Segment(name="transformer.wte", kind="embedding", run=embed),
            Segment(
                name="transformer.h", kind="layer", run=block, count=spec.num_hidden_layers, first=0
            ),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=position_inputs,
    )
