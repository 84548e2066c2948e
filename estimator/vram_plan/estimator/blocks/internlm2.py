"""InternLM 1 and 2: Llama, its code kept beside the weights.

internlm/internlm-7b ``modeling_internlm.py`` (biases around attention) and internlm/internlm2-7b
``modeling_internlm2.py`` (queries, keys and values of a group side by side in one projection), both
on huggingface.co. Every layer looks cos and sin up for itself; the loss copies shifted logits.
"""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import late_shift_loss
from vram_plan.estimator.blocks.llama import (
    decoder,
    decoder_layer,
    is_masked,
    rotary_tables,
    self_attention,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import copy, narrow, relayout
from vram_plan.estimator.ops.rotary import rotate
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def looked_up(f: Forward, table: Tensor) -> Tensor:
    """``cos[position_ids]``."""
    return f.t.new(table.numel, table.itemsize)


def layer1(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``InternLMDecoderLayer.forward``."""
    return decoder_layer(f, x, shared["cos"], shared["sin"], attention=attention1)


def attention1(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``InternLMAttention.forward``."""
    return self_attention(f, x, looked_up(f, cos), looked_up(f, sin))


def layer2(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``InternLM2DecoderLayer.forward``."""
    residual = x
    x = f.rms_norm("attention_norm", x, f.spec.hidden_size)
    x = attention2(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = f.rms_norm("ffn_norm", x, f.spec.hidden_size)
    x = feed_forward(f, x)
    return f.add(residual, x)


def attention2(f: Forward, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``InternLM2Attention.forward``: joining the groups' queries copies them."""
    spec, t, entered = f.spec, f.t, x
    hidden, bias = spec.hidden_size, spec.attention_bias
    width = spec.query_dim + 2 * spec.kv_dim
    fused = f.linear("attention.wqkv", x, (hidden, width), bias=bias, split="column")
    query, key = fused.numel * spec.query_dim // width, fused.numel * spec.kv_dim // width
    q = relayout(t, copy(t, narrow(t, fused, query)))
    k, v = relayout(t, narrow(t, fused, key)), relayout(t, narrow(t, fused, key))
    cos, sin = looked_up(f, cos), looked_up(f, sin)
    q, k = rotate(t, q, cos, sin), rotate(t, k, cos, sin)
    k, v = f.how.method.keys_values(f, k, v)
    out = f.attention(q, k, v, masked=is_masked(f))
    shape = (spec.query_dim, hidden)
    out = f.linear("attention.wo", out, shape, bias=spec.attention_out_bias, split="row")
    return f.sublayer("attention", out, entered)


def feed_forward(f: Forward, x: Tensor) -> Tensor:
    """``InternLM2MLP.forward``: w2(act(w1(x)) · w3(x))."""
    shape = (f.spec.hidden_size, f.spec.intermediate_size)
    inner = f.mul(
        f.act(f.linear("feed_forward.w1", x, shape, split="column")),
        f.linear("feed_forward.w3", x, shape, split="column"),
    )
    out = f.linear("feed_forward.w2", inner, shape[::-1], split="row")
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss in fp32."""
    x = f.rms_norm("norm", x.moved(), f.spec.hidden_size)
    return late_shift_loss(f, x, wide=True)


def compose(spec: ModelSpec) -> Composition:
    """``InternLMForCausalLM`` and ``InternLM2ForCausalLM``."""
    layer = layer2 if spec.model_type == "internlm2" else layer1
    return decoder(spec, layer, head=head, shared=rotary_tables)
