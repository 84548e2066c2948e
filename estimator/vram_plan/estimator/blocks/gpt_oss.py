"""gpt-oss: attention sinks, experts and router with biases, a clamped gate."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import grouped_experts, router_logits
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.blocks.llama import decoder, key, query, rotary_tables, value
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.activations import activation
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import clamp, mul, narrow, scale, shift
from vram_plan.estimator.ops.experts import topk
from vram_plan.estimator.ops.pairs import rotate_chunks
from vram_plan.estimator.ops.sinks import sink_attention, with_sinks
from vram_plan.estimator.segment import Composition, Shared
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GptOssDecoderLayer.forward``.

    transformers 5.23.0 ``models/gpt_oss/modeling_gpt_oss.py``.
    """
    hidden, residual = f.spec.hidden_size, x
    x = f.rms_norm_wide("input_layernorm", x, hidden)
    x, held = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm_wide("post_attention_layernorm", x, hidden)
    x, held = sparse_block(f, x)
    x = f.add(residual, x)
    del held
    return x


def self_attention(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
    """``GptOssAttention.forward``: its output and, from eager attention, the probabilities."""
    spec, entered = f.spec, x
    q, k, v = query(f, x), key(f, x), value(f, x)
    q, k = rotate_chunks(f.t, q, cos, sin), rotate_chunks(f.t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out, held = attend(f, q, k, v)
    shape = (spec.query_dim, spec.hidden_size)
    out = f.linear("self_attn.o_proj", out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered), held


def attend(f: Forward, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """The kernel: the class's own eager code, or a flash kernel that takes the sinks.

    The classes refuse sdpa. The flash kernels they accept (``_compatible_flash_implementations``)
    keep what flash attention keeps.
    """
    if f.how.attention == "sdpa":
        raise ValueError(
            "--attention sdpa: gpt-oss has sinks, which it lacks; choose flash or eager"
        )
    heads = f.heads()
    sinks = f.param("self_attn.sinks", (heads.heads,), "sinks")
    if f.how.attention == "eager":
        return sink_attention(f.t, (q, k, v), sinks, heads)
    return with_sinks(f.t, f.attention(q, k, v), sinks), None


def sparse_block(f: Forward, x: Tensor) -> tuple[Tensor, Tensor]:
    """``GptOssMLP.forward``: also returns the router's weights, which the layer holds."""
    logits = router_logits(f, "mlp.router", x)
    chosen, index = topk(f.t, logits, f.tokens * f.spec.num_experts_per_tok)
    weights = softmax(f.t, chosen, chosen.itemsize, half_to_float=False)
    del chosen
    out = grouped_experts(f, "mlp.experts", x, index, weights, gate=clamped_gate)
    del logits
    return f.sublayer("mlp", out, x), weights


def clamped_gate(f: Forward, x: Tensor) -> Tensor:
    """``(up + 1) * gate * sigmoid(gate * alpha)`` of interleaved, clamped gate and up."""
    t, half = f.t, x.numel // 2
    gate, up = narrow(t, x, half), narrow(t, x, half)
    gate = clamp(t, gate, sides=1)
    up = clamp(t, up)
    glu = mul(t, gate, activation(t, scale(t, gate), "sigmoid"))
    out = mul(t, shift(t, up), glu)
    del gate, up, glu
    return out


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    return causal_lm_loss(f, f.rms_norm_wide("norm", x.moved(), f.spec.hidden_size))


def compose(spec: ModelSpec) -> Composition:
    """``GptOssForCausalLM``; cos and sin hold one number for every pair."""
    return decoder(spec, layer, head=head, shared=half_tables)


def half_tables(f: Forward) -> dict[str, Shared]:
    """The tables [1, seq, head_dim / 2] of cos and sin, position ids and the masks."""
    made = rotary_tables(f)
    table = Shared(numel=f.seq * f.spec.rotary_dim // 2, itemsize=made["cos"].itemsize)
    return made | {"cos": table, "sin": table}
