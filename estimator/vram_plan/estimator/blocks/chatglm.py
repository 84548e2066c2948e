"""ChatGLM 2 and 3: one projection for few key heads, half of each head rotated, SwiGLU.

THUDM/chatglm2-6b and chatglm3-6b ``modeling_chatglm.py`` (beside the weights on huggingface.co).
Attention is PyTorch's scaled_dot_product_attention, whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import late_shift_loss, token_embedding
from vram_plan.estimator.blocks.phi3 import rotated
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import repeat_heads
from vram_plan.estimator.ops.elementwise import copy
from vram_plan.estimator.ops.rotary_pairs import rotate_pairs
from vram_plan.estimator.ops.sdpa import kernel_for, sdpa
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def embed(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The lookup, put in the order [seq, batch, hidden]."""
    x = token_embedding(f, ids, shared)
    return copy(f.t, x) if f.batch > 1 else x


def norm(f: Forward, name: str, x: Tensor) -> Tensor:
    """``RMSNorm``."""
    return f.rms_norm_mixed(name, x, f.spec.hidden_size, wide=True)


def block(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GLMBlock.forward``."""
    spec = f.spec
    normed = norm(f, "input_layernorm", x)
    attended = self_attention(f, normed, shared["rope"].view(f.seq * spec.rotary_dim // 2))
    residual = normed if spec.residual_from_layernorm else x
    joined = f.add(residual, f.dropout(attended, spec.hidden_dropout))
    normed = norm(f, "post_attention_layernorm", joined)
    forwarded = mlp(f, normed)
    residual = normed if spec.residual_from_layernorm else joined
    return f.add(residual, f.dropout(forwarded, spec.hidden_dropout))


def self_attention(f: Forward, x: Tensor, rope: Tensor) -> Tensor:
    """``SelfAttention.forward`` and ``CoreAttention.forward``."""
    spec, t, entered = f.spec, f.t, x
    hidden, width = spec.hidden_size, spec.query_dim + 2 * spec.kv_dim
    name, bias = "self_attention.query_key_value", spec.attention_bias
    fused = f.linear(name, x, (hidden, width), bias=bias, split="column")
    query, key = fused.numel * spec.query_dim // width, fused.numel * spec.kv_dim // width
    q, k, v = split(t, fused, (query, key, key))
    del fused
    q = rotate_pairs(t, q, rope, rope, rotated(f, query))
    k = rotate_pairs(t, k, rope, rope, rotated(f, key))
    k, v = f.how.method.keys_values(f, k, v)
    heads = f.heads()
    k, v = repeat_heads(t, k, heads), repeat_heads(t, v, heads)
    heads = f.heads(kv_heads=heads.heads)
    out = sdpa(t, q, k, v, heads)
    if (
        f.batch > 1
        and kernel_for(2 if f.how.autocast else q.itemsize, heads, masked=False) == "efficient"
    ):
        out = copy(t, out)  # this kernel's result lies batch by batch
    shape = (spec.query_dim, hidden)
    name = "self_attention.dense"
    out = f.linear(name, out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered)


def mlp(f: Forward, x: Tensor) -> Tensor:
    """``MLP.forward``: gate and value in one projection, chunked."""
    spec, bias = f.spec, f.spec.mlp_bias
    hidden, inner = spec.hidden_size, spec.intermediate_size
    fused = f.linear("mlp.dense_h_to_4h", x, (hidden, 2 * inner), bias=bias, split="column")
    gate, up = split(f.t, fused, (fused.numel // 2, fused.numel // 2))
    del fused
    product = f.mul(f.act(gate), up)
    del gate, up
    out = f.linear("mlp.dense_4h_to_h", product, (inner, hidden), bias=bias, split="row")
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss in fp32."""
    x = norm(f, "final_layernorm", x.moved())
    return late_shift_loss(f, x, wide=True)


def tables(f: Forward) -> dict[str, Shared]:
    """Cosines and sines of the longest sequence: [length, 1, rotary_dim / 2, 2]."""
    length = max(f.seq, f.spec.max_position_embeddings)
    return {"rope": Shared(numel=length * f.spec.rotary_dim, itemsize=f.how.compute_bytes)}


def compose(spec: ModelSpec) -> Composition:
    """``ChatGLMForConditionalGeneration``."""
    layers = spec.num_hidden_layers
    return Composition(
        segments=(
            Segment(name="transformer.embedding", kind="embedding", run=embed),
            Segment(
                name="transformer.encoder.layers", kind="layer", run=block, count=layers, first=0
            ),
            Segment(name="transformer.output_layer", kind="head", run=head),
        ),
        shared=tables,
    )
