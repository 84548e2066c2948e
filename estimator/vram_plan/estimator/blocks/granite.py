"""Granite 3: Llama with multipliers on embeddings, residuals and logits."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import causal_lm_loss, multiplied_embedding
from vram_plan.estimator.blocks.llama import decoder, gated_mlp, self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import scale
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GraniteDecoderLayer.forward``, transformers 5.23.0 ``modeling_granite.py``."""
    residual = x
    x = f.rms_norm("input_layernorm", x, f.spec.hidden_size)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, scale(f.t, x))
    residual = x
    x = f.rms_norm("post_attention_layernorm", x, f.spec.hidden_size)
    x = gated_mlp(f, x)
    return f.add(residual, scale(f.t, x))


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary, its scale and the loss."""
    x = f.rms_norm("norm", x.moved(), f.spec.hidden_size)
    return causal_lm_loss(f, x, scaled=True)


def compose(spec: ModelSpec) -> Composition:
    """``GraniteForCausalLM``."""
    return decoder(spec, layer, head=head, embed=multiplied_embedding)
