"""Phi-3.5-MoE: layer norms with biases and a router that samples its two experts (SparseMixer)."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import grouped_experts
from vram_plan.estimator.blocks.heads import causal_lm_loss
from vram_plan.estimator.blocks.llama import decoder, self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.routing import sparse_mixer
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``PhimoeDecoderLayer.forward``, transformers 5.23.0 ``models/phimoe/modeling_phimoe.py``."""
    hidden, residual = f.spec.hidden_size, x
    x = f.layer_norm("input_layernorm", x, hidden)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = f.layer_norm("post_attention_layernorm", x, hidden)
    x = sparse_block(f, x)
    return f.add(residual, x)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``PhimoeSparseMoeBlock.forward`` without ``input_jitter_noise``, as is the class's default.

    The router is an ``nn.Linear`` here. ``sparsemixer`` always takes two experts.
    """
    spec = f.spec
    logits = f.linear("mlp.router", x, (spec.hidden_size, spec.num_experts))
    itemsize = FP32_BYTES if f.how.autocast else logits.itemsize
    weights, index = sparse_mixer(f.t, logits, spec.num_experts, itemsize)
    out = grouped_experts(f, "mlp.experts", x, index, weights)
    del logits
    return f.sublayer("mlp", out, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    return causal_lm_loss(f, f.layer_norm("norm", x.moved(), f.spec.hidden_size))


def compose(spec: ModelSpec) -> Composition:
    """``PhimoeForCausalLM``; the load-balancing loss is off (``output_router_logits``)."""
    return decoder(spec, layer, head=head)
