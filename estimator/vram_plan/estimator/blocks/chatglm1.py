"""ChatGLM-6B: LayerNorms whose output is the residual, rotation in two dimensions, eager scores.

THUDM/chatglm-6b ``modeling_chatglm.py`` (beside the weights on huggingface.co). The mask is always
there; attention is written out, whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import late_shift_loss, token_embedding
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import batched_product, softmax
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, concat, copy, scale
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embed(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The lookup, seen as [seq, batch, hidden]."""
    return token_embedding(f, ids, shared)


def block(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GLMBlock.forward``: the norm's output, scaled, joins that of the sublayer."""
    spec = f.spec
    entered = f.layer_norm("input_layernorm", x, spec.hidden_size)
    attended = self_attention(f, entered)
    x = f.add(scale(f.t, entered), attended)
    inner = f.layer_norm("post_attention_layernorm", x, spec.hidden_size)
    forwarded = mlp(f, inner)
    return f.add(scale(f.t, inner), forwarded)


def self_attention(f: Forward, x: Tensor) -> Tensor:
    """``SelfAttention.forward``: halves of every head are rotated by their own positions."""
    spec, t, entered = f.spec, f.t, x
    hidden = spec.hidden_size
    name = "attention.query_key_value"
    fused = f.linear(name, x, (hidden, 3 * hidden), bias=True, split="column")
    third = fused.numel // 3
    q, k, v = split(t, fused, (third, third, third))
    q1, q2 = split(t, q, (third // 2, third // 2))
    k1, k2 = split(t, k, (third // 2, third // 2))
    q1, k1 = _turned(f, q1, k1)
    q2, k2 = _turned(f, q2, k2)
    q, k = concat(t, (q1, q2)), concat(t, (k1, k2))
    k, v = f.how.method.keys_values(f, k, v)
    out = attention(f, q, k, v)
    out = f.linear("attention.dense", out, (hidden, hidden), bias=True, split="row")
    return f.sublayer("attention", out, entered)


def _turned(f: Forward, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_pos_emb_index``: cos and sin are looked up for every token."""
    numel = f.tokens * f.spec.head_dim // 2
    cos, sin = f.t.new(numel, q.itemsize), f.t.new(numel, q.itemsize)
    return rotate(f.t, q, cos, sin), rotate(f.t, k, cos, sin)


def attention(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``attention_fn``: scaled queries, fp32 scores, scaled back, softmax, cast."""
    t, s, itemsize = f.t, f.heads(), q.itemsize
    q = scale(t, q)
    buffer = t.new(s.scores, itemsize)
    weights = batched_product(t, q, k, s.scores, s.head_dim)
    del buffer
    weights = cast(t, weights, FP32_BYTES)
    weights = scale(t, weights)
    weights = softmax(t, weights, FP32_BYTES, half_to_float=False)
    weights = cast(t, weights, itemsize)
    size = s.batch * s.heads * s.seq * s.value_dim
    return copy(t, batched_product(t, weights, v, size, s.kv_seq))


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``GLU.forward``, which has no gate."""
    spec = f.spec
    shape = (spec.hidden_size, spec.intermediate_size)
    inner = f.act(f.linear("mlp.dense_h_to_4h", x, shape, bias=True, split="column"))
    out = f.linear("mlp.dense_4h_to_h", inner, shape[::-1], bias=True, split="row")
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss in fp32."""
    x = f.layer_norm("final_layernorm", x.moved(), f.spec.hidden_size)
    return late_shift_loss(f, x, wide=True)


def tables(f: Forward) -> dict[str, Shared]:
    """Positions in two dimensions and a boolean mask [batch, 1, seq, seq]."""
    return {
        "position_ids": Shared(numel=2 * f.tokens, itemsize=INDEX_BYTES),
        "mask": Shared(numel=f.tokens * f.seq, itemsize=1),
    }


def compose(spec: ModelSpec) -> Composition:
    """``ChatGLMForConditionalGeneration`` of the first release."""
    layers = spec.num_hidden_layers
    return Composition(
        segments=(
            Segment(name="transformer.word_embeddings", kind="embedding", run=embed),
            Segment(name="transformer.layers", kind="layer", run=block, count=layers, first=0),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=tables,
    )
