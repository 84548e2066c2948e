"""DeepSeek-V2 and V3: latent attention, leading dense blocks, routed and shared experts."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.deepseek_routers import greedy_router, grouped_router
from vram_plan.estimator.blocks.experts import (
    gated_mlp,
    grouped_experts,
    layer_segments,
    prenorm_layer,
)
from vram_plan.estimator.blocks.heads import token_embedding
from vram_plan.estimator.blocks.llama import head, rotary_tables
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import concat, relayout
from vram_plan.estimator.ops.pairs import rotate_complex, rotate_slices
from vram_plan.estimator.ops.slices import crop, expand, fill, pad
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Composition, Segment, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

_COMPLEX = 2
"""DeepSeek-V2 keeps its rotary table as complex numbers: two fp32 parts for every pair."""


def is_v2(f: Forward) -> bool:
    """Whether the classes are those of ``models/deepseek_v2``."""
    return f.spec.model_type == "deepseek_v2"


def sparse_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``DeepseekV3DecoderLayer.forward`` with ``DeepseekV3MoE``, transformers 5.23.0."""
    return prenorm_layer(
        f, x, lambda x: latent_attention(f, x, shared), lambda x: sparse_block(f, x)
    )


def dense_layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The same with ``DeepseekV3MLP``: the first ``first_k_dense_replace`` blocks."""
    return prenorm_layer(f, x, lambda x: latent_attention(f, x, shared), lambda x: dense(f, x))


def dense(f: Forward, x: Tensor) -> Tensor:
    """A dense feed-forward part."""
    return f.sublayer("mlp", gated_mlp(f, "mlp", x, f.spec.intermediate_size), x)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``DeepseekV3MoE.forward``: the shared experts are one wider gated MLP."""
    route = greedy_router if is_v2(f) else grouped_router
    logits, weights, index = route(f, "mlp.gate", x)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    width = f.spec.shared_expert_intermediate_size
    out = f.add(out, gated_mlp(f, "mlp.shared_experts", x, width))
    del logits, weights, index
    return f.sublayer("mlp", out, x)


def latent_attention(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``DeepseekV3Attention.forward``: keys and values come out of one narrow projection."""
    spec, entered = f.spec, x
    heads = spec.num_attention_heads // f.how.tensor
    q = queries(f, x)
    passed = f.tokens * heads * spec.qk_nope_head_dim
    q_pass, q_rot = split(f.t, q, (passed, q.numel - passed))
    bias, rank = spec.attention_bias, spec.kv_lora_rank
    shape = (spec.hidden_size, rank + spec.qk_rope_head_dim)
    latent = f.linear("self_attn.kv_a_proj_with_mqa", x, shape, bias=bias)
    sizes = (f.tokens * rank, f.tokens * spec.qk_rope_head_dim)
    kv, k_rot = split(f.t, latent, sizes)
    kv = f.rms_norm("self_attn.kv_a_layernorm", kv, rank)
    q_rot, k_rot = rotated(f, q_rot, k_rot, shared)
    query = concat(f.t, (q_pass, q_rot))
    key, value = expand_kv(f, kv, k_rot)
    key, value = f.how.method.keys_values(f, key, value)
    out = attend(f, query, key, value)
    shape = (spec.num_attention_heads * spec.v_head_dim, spec.hidden_size)
    out = f.linear("self_attn.o_proj", out, shape, bias=spec.attention_out_bias, split="row")
    del q, q_pass, q_rot, latent, kv, k_rot, query, key, value
    return f.sublayer("attention", out, entered)


def queries(f: Forward, x: Tensor) -> Tensor:
    """The query heads, through a low rank unless ``q_lora_rank`` is 0."""
    spec = f.spec
    hidden, rank = spec.hidden_size, spec.q_lora_rank
    if not rank:
        q = f.linear("self_attn.q_proj", x, (hidden, spec.query_dim), split="column")
        return relayout(f.t, q)
    q = f.linear("self_attn.q_a_proj", x, (hidden, rank), bias=spec.attention_bias)
    q = f.rms_norm("self_attn.q_a_layernorm", q, rank)
    return relayout(f.t, f.linear("self_attn.q_b_proj", q, (rank, spec.query_dim), split="column"))


def rotated(
    f: Forward, q: Tensor, k: Tensor, shared: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The rotary parts of queries and of the one key all heads share."""
    if is_v2(f):
        return rotate_complex(f.t, q, k, shared["freqs_cis"])
    cos, sin = shared["cos"], shared["sin"]
    return rotate_slices(f.t, q, cos, sin), rotate_slices(f.t, k, cos, sin)


def expand_kv(f: Forward, kv: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
    """``expand_kv``: a key for every head, put together from both parts; values are a view."""
    spec = f.spec
    heads = spec.num_attention_heads // f.how.tensor
    width = spec.qk_nope_head_dim + spec.v_head_dim
    shape = (spec.kv_lora_rank, spec.num_attention_heads * width)
    both = relayout(f.t, f.linear("self_attn.kv_b_proj", kv, shape, split="column"))
    sizes = (f.tokens * heads * spec.qk_nope_head_dim, f.tokens * heads * spec.v_head_dim)
    k_pass, value = split(f.t, both, sizes)
    key = fill(f.t, (k_pass, expand(f.t, k_rot, heads)))
    return key, value


def attend(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel; flash attention wants equal widths: values are padded, its output is cropped.

    transformers 5.23.0 ``integrations/flash_attention.py``.
    """
    wide, narrow = f.spec.qk_head_dim, f.spec.v_head_dim
    heads = f.spec.num_attention_heads // f.how.tensor
    if f.how.attention != "flash" or wide == narrow:
        return f.attention(q, k, v, kv_heads=heads, head_dim=wide, value_dim=narrow)
    v = pad(f.t, v, v.numel // narrow * wide)
    out = f.attention(q, k, v, kv_heads=heads, head_dim=wide, value_dim=wide)
    return crop(f.t, out, out.numel // wide * narrow)


def tables(f: Forward) -> dict[str, Shared]:
    """cos and sin; V2: one complex table in fp32."""
    made = rotary_tables(f)
    if not is_v2(f):
        return made
    numel = f.seq * f.spec.qk_rope_head_dim // _COMPLEX
    rest = {name: entry for name, entry in made.items() if name not in {"cos", "sin"}}
    return rest | {"freqs_cis": Shared(numel=numel, itemsize=_COMPLEX * 4)}


def compose(spec: ModelSpec) -> Composition:
    """``DeepseekV2ForCausalLM`` and ``DeepseekV3ForCausalLM``."""
    return Composition(
        segments=(
            Segment(name="model.embed_tokens", kind="embedding", run=token_embedding),
            *layer_segments(spec, dense_layer, sparse_layer),
            Segment(name="lm_head", kind="head", run=head),
        ),
        shared=tables,
    )
