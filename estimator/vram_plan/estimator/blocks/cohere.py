"""Command R: attention and feed-forward part side by side behind one LayerNorm without bias."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.blocks.llama import attend, decoder, gated_mlp, projected
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``CohereDecoderLayer.forward``, transformers 5.23.0 ``models/cohere/modeling_cohere.py``."""
    residual = x
    x = f.layer_norm_wide("input_layernorm", x, f.spec.hidden_size)
    attended = self_attention(f, x, shared["cos"], shared["sin"])
    forwarded = gated_mlp(f, x)
    return f.add(f.add(residual, attended), forwarded)


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``CohereAttention.forward``: norms of their own for every head where there are any."""
    spec, t, entered = f.spec, f.t, x
    q = projected(f, "q_proj", x, spec.query_dim)
    k = projected(f, "k_proj", x, spec.kv_dim)
    v = projected(f, "v_proj", x, spec.kv_dim)
    q, k, v = relayout(t, q), relayout(t, k), relayout(t, v)
    if spec.qk_norm != "none":
        q = f.head_norm("self_attn.q_norm", q, spec.query_dim)
        k = f.head_norm("self_attn.k_norm", k, spec.kv_dim)
    q, k = rotate_in_fp32(f, q, k, cos, sin)
    return attend(f, q, k, v, entered)


def rotate_in_fp32(
    f: Forward, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Both are cast before either is rotated, and cast back when both are."""
    t, itemsize = f.t, q.itemsize
    wide_q = cast(t, q, FP32_BYTES, by_token=True)
    wide_k = cast(t, k, FP32_BYTES, by_token=True)
    wide_q, wide_k = rotate(t, wide_q, cos, sin), rotate(t, wide_k, cos, sin)
    q = cast(t, wide_q, itemsize, by_token=True)
    return q, cast(t, wide_k, itemsize, by_token=True)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary, its scale and the loss."""
    x = f.layer_norm_wide("norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x, scaled=True)


def compose(spec: ModelSpec) -> Composition:
    """``CohereForCausalLM``."""
    return decoder(spec, layer, head=head)
