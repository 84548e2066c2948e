"""Baichuan 1 and 2: one packed projection; the 7B rotates, the 13B adds ALiBi to its scores.

baichuan-inc/Baichuan2-7B-Base and -13B-Base ``modeling_baichuan.py`` (beside the weights on
huggingface.co). ``flash`` is xformers' kernel, which the code uses where it is installed. Left out:
the normalisation of Baichuan 2's head and its z-loss.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import late_shift_loss
from vram_plan.estimator.blocks.llama import decoder, gated_mlp
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import batched_product, low, merged, softmax
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    maximum,
    narrow,
    relayout,
    scale,
)
from vram_plan.estimator.ops.rotary_pairs import rotate_in_fp32
from vram_plan.estimator.ops.sdpa import sdpa
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec

Tables = Mapping[str, Tensor]


def norm(f: Forward, name: str, x: Tensor) -> Tensor:
    """``RMSNorm``."""
    return f.rms_norm_mixed(name, x, f.spec.hidden_size, wide=False)


def layer(f: Forward, x: Tensor, shared: Tables) -> Tensor:
    """``DecoderLayer.forward`` (7B) and ``BaichuanLayer.forward`` (13B)."""
    residual = x
    x = norm(f, "input_layernorm", x)
    x = self_attention(f, x, shared)
    x = f.add(residual, x)
    residual = x
    x = norm(f, "post_attention_layernorm", x)
    x = gated_mlp(f, x)
    return f.add(residual, x)


def self_attention(f: Forward, x: Tensor, shared: Tables) -> Tensor:
    """``W_pack``, three views of it, attention, ``o_proj``."""
    spec, t, entered = f.spec, f.t, x
    hidden = spec.hidden_size
    packed = f.linear("self_attn.W_pack", x, (hidden, 3 * hidden), split="column")
    third = packed.numel // 3
    q = relayout(t, narrow(t, packed, third))
    k = relayout(t, narrow(t, packed, third))
    v = relayout(t, narrow(t, packed, third))
    if spec.position_embedding_type == "rope":
        numel = f.seq * spec.rotary_dim
        cos, sin = t.new(numel, FP32_BYTES), t.new(numel, FP32_BYTES)
        q, k = rotate_in_fp32(t, q, cos, sin), rotate_in_fp32(t, k, cos, sin)
        del cos, sin
    k, v = f.how.method.keys_values(f, k, v)
    out = attention(f, q, k, v, shared["mask"])
    out = f.linear("self_attn.o_proj", out, (hidden, hidden), split="row")
    return f.sublayer("attention", out, entered)


def attention(f: Forward, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Fused with the mask as a bias; the 13B without xformers writes its scores out."""
    alibi = f.spec.position_embedding_type != "rope"
    if alibi and f.how.attention == "eager":
        return written(f, q, k, v)
    if not alibi and f.how.attention == "flash":
        return f.attention(q, k, v)
    return sdpa(f.t, q, k, v, f.heads(), mask=mask)


def written(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores, scale, bias, a floor, softmax in their own dtype, product."""
    t, s = f.t, f.heads()
    weights = scale(t, batched_product(t, low(t, q, s), low(t, k, s), s.scores, s.head_dim))
    weights = add(t, weights, Tensor(0, weights.itemsize, None))
    weights = maximum(t, weights)
    width = FP32_BYTES if f.how.autocast else weights.itemsize
    weights = softmax(t, weights, width, half_to_float=f.how.half)
    numel = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, low(t, weights, s, flat=True), low(t, v, s), numel, s.kv_seq)
    return merged(t, out, s)


def head(f: Forward, x: Tensor, shared: Tables) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss in the logits' dtype."""
    x = norm(f, "norm", x.moved())
    return late_shift_loss(f, x, wide=False)


def tables(f: Forward) -> dict[str, Shared]:
    """The mask: [batch, 1, seq, seq] for the 7B, ALiBi's [heads, seq, seq] for the 13B."""
    alibi = f.spec.position_embedding_type != "rope"
    maps = f.heads().heads if alibi else f.batch
    return {
        "position_ids": Shared(numel=f.seq, itemsize=INDEX_BYTES, saved=False),
        "mask": Shared(numel=maps * f.seq * f.seq, itemsize=f.how.compute_bytes),
    }


def compose(spec: ModelSpec) -> Composition:
    """``BaichuanForCausalLM``."""
    return decoder(spec, layer, head=head, shared=tables)
