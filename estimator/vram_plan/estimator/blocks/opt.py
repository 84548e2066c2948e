"""OPT: learned positions behind an offset; OPT-350m with norms behind and projections around."""

from __future__ import annotations

from vram_plan.estimator.blocks.gpt_parts import (
    INDEX_BYTES,
    Inputs,
    Shareds,
    attend,
    lent,
    local,
    mask,
    model,
    token_lookup,
)
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, scale
from vram_plan.estimator.ops.scores import Written
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embed(f: Forward, ids: Tensor, shared: Inputs) -> Tensor:
    """Tokens, projected in where they are narrower, plus positions of the whole batch."""
    spec = f.spec
    width = spec.embedding_size or spec.hidden_size
    x = f.embedding("embed_tokens", ids, spec.vocab_size, width)
    x = f.how.method.embed(f, x)
    rows = spec.position_embedding_rows
    positions = f.embedding("embed_positions", shared["position_ids"], rows, spec.hidden_size)
    positions = lent(positions)
    if spec.embedding_size:
        x = f.linear("project_in", x, (width, spec.hidden_size))
    x = lent(x)
    return f.add(x, positions)


def layer(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """``OPTDecoderLayer.forward``, transformers 5.23.0 ``models/opt/modeling_opt.py``."""
    spec = f.spec
    hidden, before = spec.hidden_size, spec.do_layer_norm_before
    residual = x
    if before:
        x = f.layer_norm("self_attn_layer_norm", x, hidden)
    x = attention(f, x)
    x = f.dropout(x, spec.hidden_dropout)
    x = f.add(residual, x)
    if not before:
        x = f.layer_norm("self_attn_layer_norm", x, hidden)
    residual = x
    if before:
        x = f.layer_norm("final_layer_norm", x, hidden)
    x = feed_forward(f, x)
    x = f.add(residual, x)
    return x if before else f.layer_norm("final_layer_norm", x, hidden)


def feed_forward(f: Forward, x: Tensor) -> Tensor:
    """``fc1``, activation, ``fc2``, dropout: on the batch's tokens as one matrix."""
    spec = f.spec
    x = x.moved() if spec.do_layer_norm_before else x  # the norm's variable becomes the product's
    x.flat = True
    entered = x if f.how.method.parallel else lent(x)
    shape = (spec.hidden_size, spec.intermediate_size)
    x = f.linear("fc1", x, shape, bias=spec.mlp_bias, split="column")
    x = f.act(x)
    x.flat = True
    x = f.linear("fc2", x, shape[::-1], bias=spec.mlp_bias, split="row")
    x = f.dropout(x, spec.hidden_dropout)
    return f.sublayer("mlp", x, entered)


def attention(f: Forward, x: Tensor) -> Tensor:
    """``OPTAttention.forward``: queries are scaled before the product."""
    spec, entered = f.spec, x
    shape, bias = (spec.hidden_size, spec.query_dim), spec.attention_bias
    q = scale(f.t, f.linear("self_attn.q_proj", x, shape, bias=bias, split="column"))
    k = f.linear("self_attn.k_proj", x, shape, bias=bias, split="column")
    v = f.linear("self_attn.v_proj", x, shape, bias=bias, split="column")
    k, v = f.how.method.keys_values(f, k, v)
    out = attend(f, q, k, v, Written(wide_softmax=True))
    out = f.linear(
        "self_attn.out_proj", out, shape[::-1], bias=spec.attention_out_bias, split="row"
    )
    return f.sublayer("attention", out, entered)


def head(f: Forward, x: Tensor, shared: Inputs) -> Tensor:
    """The last norm where norms stand in front, the projection out, the vocabulary and the loss."""
    spec = f.spec
    x = x.moved()
    if spec.do_layer_norm_before:
        x = f.layer_norm("final_layer_norm", x, spec.hidden_size)
    if spec.embedding_size:
        x = f.linear("project_out", x, (spec.hidden_size, spec.embedding_size))
    return causal_lm_loss(f, x, width=spec.embedding_size)


def shared_tensors(f: Forward) -> Shareds:
    """Position ids with and without offset, the ones they are counted from, both lookups."""
    tokens, itemsize = f.tokens, f.how.stream_bytes
    learns = f.how.training and f.how.method.trains("embed_positions.weight", "position", -1)
    return {
        "position_ids": Shared(numel=tokens, itemsize=INDEX_BYTES, saved=learns),
        "positions": local(tokens, INDEX_BYTES),
        "ones": local(tokens, FP32_BYTES),
        **token_lookup(f),
        "position_embeds": local(tokens * f.spec.hidden_size, itemsize),
        **mask(f),
    }


def compose(spec: ModelSpec) -> Composition:
    """``OPTForCausalLM``."""
    names = ("model.decoder.embed_tokens", "model.decoder.layers")
    return model(spec, names, (embed, layer, head), shared_tensors)
