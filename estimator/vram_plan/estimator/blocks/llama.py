"""Llama and its relatives: pre-norm RMS norms, rotary embeddings, grouped keys, a gated MLP."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import causal_lm_loss, token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def decoder_layer(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``LlamaDecoderLayer.forward``, transformers 5.23.0 ``models/llama/modeling_llama.py``."""
    residual = x
    x = f.rms_norm("input_layernorm", x, f.spec.hidden_size)
    x = self_attention(f, x, cos, sin)
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, f.spec.hidden_size)
    x = gated_mlp(f, x)
    return f.add(residual, x)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``LlamaAttention.forward`` (Qwen2: with biases on q, k and v)."""
    spec, entered = f.spec, x
    hidden, bias = spec.hidden_size, spec.attention_bias
    q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), bias=bias, split="column")
    q = relayout(f.t, q)
    k = f.linear("self_attn.k_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    k = relayout(f.t, k)
    v = f.linear("self_attn.v_proj", x, (hidden, spec.kv_dim), bias=bias, split="column")
    v = relayout(f.t, v)
    q, k = rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out = f.attention(q, k, v, masked=is_masked(f))
    out = f.linear(
        "self_attn.o_proj", out, (spec.query_dim, hidden), bias=spec.attention_out_bias, split="row"
    )
    return f.sublayer("attention", out, entered)


def is_masked(f: Forward) -> bool:
    """Whether attention is given a mask.

    Eager attention always is; sdpa where a window is shorter than the sequence; flash never.
    """
    if f.how.attention != "sdpa":
        return f.how.attention == "eager"
    return f.spec.is_windowed(f.layer) and f.seq > f.spec.sliding_window


def gated_mlp(f: Forward, x: Tensor) -> Tensor:
    """``LlamaMLP.forward``: down(act(gate(x)) · up(x))."""
    spec, bias = f.spec, f.spec.mlp_bias
    shape = (spec.hidden_size, spec.intermediate_size)
    inner = f.mul(
        f.act(f.linear("mlp.gate_proj", x, shape, bias=bias, split="column")),
        f.linear("mlp.up_proj", x, shape, bias=bias, split="column"),
    )
    out = f.linear("mlp.down_proj", inner, shape[::-1], bias=bias, split="row")
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = f.rms_norm("norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """One decoder layer."""
    return decoder_layer(f, x, shared["cos"], shared["sin"])


def rotary_tables(f: Forward) -> dict[str, Shared]:
    """cos and sin [1, seq, head_dim], made once a step in the activations' dtype."""
    numel = f.seq * f.spec.rotary_dim
    table = Shared(numel=numel, itemsize=f.how.compute_bytes)
    ids = Shared(numel=f.seq, itemsize=INDEX_BYTES, saved=False)
    return {"cos": table, "sin": table, "position_ids": ids, **eager_mask(f)}


def eager_mask(f: Forward) -> dict[str, Shared]:
    """The additive mask [batch, 1, seq, seq] of eager attention; one more kind with windows."""
    if f.how.attention != "eager":
        return {}
    numel = f.batch * f.seq * f.seq
    return {"mask": Shared(numel=numel, itemsize=f.how.compute_bytes, saved=False)}


def compose(spec: ModelSpec) -> Composition:
    """``LlamaForCausalLM``."""
    return Composition(
        segments=(
            Segment(name="model.embed_tokens", kind="embedding", run=token_embedding),
            Segment(name="model.layers", kind="layer", run=layer, count=spec.num_hidden_layers, first=0),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=rotary_tables,
    )
