"""Granite 3 with experts (and a shared one): multipliers on embedding, branches and logits."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.blocks.experts import grouped_experts, halves, router_logits
from vram_plan.estimator.blocks.granite import head
from vram_plan.estimator.blocks.heads import multiplied_embedding
from vram_plan.estimator.blocks.llama import decoder, self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.attention import softmax
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, scale
from vram_plan.estimator.ops.experts import topk
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GraniteMoeDecoderLayer.forward``, transformers 5.23.0 ``modeling_granitemoe.py``.

    ``GraniteMoeSharedDecoderLayer`` is the same with ``shared_mlp``.
    """
    hidden = f.spec.hidden_size
    residual = x
    x = f.rms_norm("input_layernorm", x, hidden)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, scale(f.t, x))
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, hidden)
    x = feed_forward(f, x)
    return f.add(residual, scale(f.t, x))


def feed_forward(f: Forward, x: Tensor) -> Tensor:
    """Routed experts, plus the shared one if the model has it."""
    out = sparse_block(f, x)
    if f.spec.shared_expert_intermediate_size:
        out = f.add(out, shared_mlp(f, x))
    return f.sublayer("mlp", out, x)


def sparse_block(f: Forward, x: Tensor) -> Tensor:
    """``GraniteMoeMoE.forward``."""
    logits, weights, index = router(f, x)
    out = grouped_experts(f, "block_sparse_moe.experts", x, index, weights)
    del logits
    return out


def router(f: Forward, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``GraniteMoeTopKRouter.forward``: the largest of the fp32 logits, then their softmax."""
    logits = cast(f.t, router_logits(f, "block_sparse_moe.router", x), FP32_BYTES)
    chosen, index = topk(f.t, logits, f.tokens * f.spec.num_experts_per_tok)
    weights = cast(f.t, softmax(f.t, chosen, FP32_BYTES, half_to_float=False), x.itemsize)
    return logits, weights, index


def shared_mlp(f: Forward, x: Tensor) -> Tensor:
    """``GraniteMoeSharedMLP.forward``: gate and up are one projection."""
    hidden, width = f.spec.hidden_size, f.spec.shared_expert_intermediate_size
    x = f.linear("shared_mlp.input_linear", x, (hidden, 2 * width), split="column")
    return f.linear("shared_mlp.output_linear", halves(f, x), (width, hidden), split="row")


def compose(spec: ModelSpec) -> Composition:
    """``GraniteMoeForCausalLM`` and ``GraniteMoeSharedForCausalLM``."""
    return decoder(spec, layer, head=head, embed=multiplied_embedding)
