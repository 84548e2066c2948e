"""Multi-head latent attention (arXiv:2405.04434): keys and values share one narrow projection."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.llama import is_masked, rotary_tables
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, concat, relayout
from vram_plan.estimator.ops.pairs import rotate_complex, rotate_slices
from vram_plan.estimator.ops.slices import crop, expand, fill, pad
from vram_plan.estimator.ops.split import split
from vram_plan.estimator.segment import Shared
from vram_plan.estimator.tape import Tensor


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
    if "freqs_cis" in shared:
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
    value.by_token = True
    key = fill(f.t, (k_pass, expand(f.t, k_rot, heads)))
    return key, value


def attend(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel; flash attention wants equal widths: values are padded, its output is cropped.

    transformers 5.23.0 ``integrations/flash_attention.py``.
    """
    wide, narrow = f.spec.qk_head_dim, f.spec.v_head_dim
    heads = f.spec.num_attention_heads // f.how.tensor
    shape = {"kv_heads": heads, "head_dim": wide, "value_dim": narrow}
    if f.how.attention != "flash" or wide == narrow:
        return f.attention(q, k, v, masked=is_masked(f), **shape)
    shape["value_dim"] = wide
    v = pad(f.t, v, v.numel // narrow * wide)
    out = f.attention(q, k, v, **shape)
    return crop(f.t, out, out.numel // wide * narrow)


def complex_tables(f: Forward) -> dict[str, Shared]:
    """V2 has one table of complex numbers instead of cos and sin: two fp32 parts for every pair."""
    made = rotary_tables(f)
    del made["cos"], made["sin"]
    table = Shared(numel=f.seq * f.spec.qk_rope_head_dim, itemsize=FP32_BYTES)
    return made | {"freqs_cis": table}
