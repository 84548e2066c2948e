"""A dense decoder as Megatron-LM builds it: ``GPTModel`` with Transformer Engine's layers.

Megatron-LM @ d98e8a64 ``megatron/core/models/gpt``, ``megatron/core/transformer``. The architecture
is the model's; the operators are Megatron's, so what they keep differs from transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops import attention, megatron
from vram_plan.estimator.ops.core_checkpoint import core_checkpoint
from vram_plan.estimator.ops.elementwise import copy
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Param, Tape, Tensor
from vram_plan.profiles.model import ModelSpec

VOCABULARY_MULTIPLE = 128
"""``--make-vocab-size-divisible-by``: the padded vocabulary is a multiple of 128 · tp."""


def is_built(spec: ModelSpec) -> bool:
    """Whether this composition stands for the architecture; others keep their own."""
    return is_plain(spec) and not spec.num_experts


def is_plain(spec: ModelSpec) -> bool:
    """Whether the parts around the feed-forward one are those of this composition."""
    plain = spec.is_causal and not spec.is_encoder_decoder and spec.do_layer_norm_before
    same = spec.qk_norm in {"none", "head"}
    return plain and same and not spec.is_latent and not spec.use_parallel_residual


def compose(spec: ModelSpec) -> Composition:
    """``GPTModel``."""
    count = spec.num_hidden_layers
    return Composition(
        segments=(
            Segment(name="embedding", kind="embedding", run=embedding),
            Segment(name="decoder.layers", kind="layer", run=layer, count=count, first=0),
            Segment(name="output_layer", kind="head", run=head),
        ),
        shared=rotary_frequencies,
    )


def padded_rows(spec: ModelSpec, ranks: int) -> int:
    """Rows of the vocabulary on one rank, padding included."""
    multiple = VOCABULARY_MULTIPLE * ranks
    return -(-spec.vocab_size // multiple) * multiple // ranks


def rotary_frequencies(f: Forward) -> dict[str, Shared]:
    """The angles of the rotary kernel in fp32."""
    return {"freqs": Shared(numel=f.seq * f.spec.rotary_dim, itemsize=4)}


def embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``LanguageModelEmbedding``: vocabulary-parallel lookup, positions, [s, b, h], dropout."""
    spec, split = f.spec, split_of(f)
    x = f.embedding("embed_tokens", ids, padded_rows(spec, split.ranks), spec.hidden_size)
    if spec.position_embedding_type == "learned":
        rows = spec.position_embedding_rows
        x = f.add(x, f.embedding("position_embeddings", ids, rows, spec.hidden_size))
    x = copy(f.t, x)
    if split.gathers:
        x = megatron.scatter_tokens(f.t, x, split)
    return f.dropout(x, spec.hidden_dropout)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``TransformerLayer``: attention and feed-forward part, each added with dropout."""
    dropout = f.spec.hidden_dropout
    x = megatron.dropout_add(f.t, self_attention(f, x), x, dropout)
    return megatron.dropout_add(f.t, feed_forward(f, x), x, dropout)


def self_attention(f: Forward, x: Tensor) -> Tensor:
    """``SelfAttention``: norm and one projection for q, k, v; rotation; kernel; projection."""
    spec = f.spec
    heads = f.heads()
    sizes = tuple(n * heads.head_dim for n in (heads.heads, heads.kv_heads, heads.kv_heads))
    scale, weights = (
        norm_weights(f, "input_layernorm"),
        linear_weights(
            f, "self_attn.linear_qkv", (sum(sizes), spec.hidden_size), bias=spec.attention_bias
        ),
    )
    made = _columns(f, x, scale, weights)
    q, k, v = megatron.split_projections(f.t, made, tuple(f.tokens * size for size in sizes))
    del made
    if spec.qk_norm == "head":
        q, k = _head_norm(f, q, "q_layernorm"), _head_norm(f, k, "k_layernorm")
    if spec.rotary_dim:
        q, k = megatron.rotate(f.t, q), megatron.rotate(f.t, k)
    out = _kernel(f, q, k, v)
    del q, k, v
    shape = (spec.hidden_size, heads.heads * heads.head_dim)
    projection = linear_weights(f, "self_attn.linear_proj", shape, bias=spec.attention_out_bias)
    return _rows(f, out, projection, attends=True)


def _head_norm(f: Forward, x: Tensor, name: str) -> Tensor:
    """``--qk-layernorm``: an RMS norm over each head, one weight for all of them."""
    width = f.spec.head_dim
    weight = f.param(f"self_attn.{name}.weight", width, "norm")
    return megatron.norm(f.t, x, (weight,), width)


def _kernel(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Flash attention, or scores with a 16-bit softmax that keeps its output and a mask."""
    heads = f.heads()

    def core(t: Tape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if f.how.attention == "eager":
            return megatron.unfused_attention(t, q, k, v, heads)
        return attention.flash(t, q, k, v, heads)

    if f.how.recomputes_core and f.t.grad_enabled:
        return core_checkpoint(f.t, q, k, v, core)
    return core(f.t, q, k, v)


def feed_forward(f: Forward, x: Tensor) -> Tensor:
    """``MLP``: norm and projection up, one fused activation, projection down."""
    spec, split = f.spec, split_of(f)
    width = spec.intermediate_size // split.ranks
    wide = width * (2 if spec.is_gated_act else 1)
    scale = norm_weights(f, "pre_mlp_layernorm")
    up = linear_weights(f, "mlp.linear_fc1", (wide, spec.hidden_size), bias=spec.mlp_bias)
    made = _columns(f, x, scale, up)
    made = megatron.activate(f.t, made, f.tokens * width)
    down = linear_weights(f, "mlp.linear_fc2", (spec.hidden_size, width), bias=spec.mlp_bias)
    return _rows(f, made, down)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the vocabulary-parallel projection and its cross-entropy."""
    logits = vocabulary_logits(f, x)
    with f.t.scope("logits"):
        return megatron.vocabulary_loss(f.t, logits, compiled=f.how.loss == "fused-ce")


def vocabulary_logits(f: Forward, x: Tensor) -> Tensor:
    """The last norm and this rank's part of the logits."""
    spec, split = f.spec, split_of(f)
    x = megatron.norm(f.t, x, norm_weights(f, "final_layernorm"), spec.hidden_size)
    name = "embed_tokens.weight" if spec.tie_word_embeddings else "output_layer.weight"
    weight = f.param(name, (padded_rows(spec, split.ranks), spec.hidden_size), "head")
    with f.t.scope("logits"):
        return megatron.head_linear(f.t, x, weight, split)


def split_of(f: Forward) -> megatron.Split:
    """How tensor ranks divide the layer."""
    return megatron.Split(ranks=f.how.tensor, sequence=f.how.sequence_parallel)


def _columns(f: Forward, x: Tensor, scale: tuple[Param, ...], weights: tuple[Param, ...]) -> Tensor:
    """Norm and product by columns, in 16 bits or in 8."""
    if f.how.eight is not None:
        from vram_plan.estimator.ops import megatron_fp8  # few ask for it

        return megatron_fp8.norm_linear(f.t, x, scale, weights, split_of(f), f.how.eight)
    return megatron.norm_linear(f.t, x, scale, weights, split_of(f))


def _rows(f: Forward, x: Tensor, weights: tuple[Param, ...], *, attends: bool = False) -> Tensor:
    """A product by rows, in 16 bits or in 8; ``attends``: of attention's output."""
    eight = f.how.eight
    if eight is not None:
        from vram_plan.estimator.ops import megatron_fp8

        original = attends and eight.keeps_original
        return megatron_fp8.row_linear(f.t, x, weights, split_of(f), eight, original=original)
    return megatron.row_linear(f.t, x, weights, split_of(f))


def norm_weights(f: Forward, name: str) -> tuple[Param, ...]:
    """An RMS norm where positions turn and the feed-forward part is gated, else a layer norm."""
    rms = f.spec.is_gated_act and f.spec.position_embedding_type == "rope"
    parts = ("weight",) if rms else ("weight", "bias")
    return tuple(f.param(f"{name}.{part}", f.spec.hidden_size, "norm") for part in parts)


def linear_weights(
    f: Forward, name: str, shape: tuple[int, int], *, bias: bool
) -> tuple[Param, ...]:
    """A product's weight [outputs, inputs] on this rank, and its bias where it has one."""
    weight = f.param(f"{name}.weight", shape, "linear")
    return (weight, f.param(f"{name}.bias", shape[0], "bias")) if bias else (weight,)
