"""Gemma 1: Llama with scaled embeddings and norms that stay in fp32 until weighed."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.heads import causal_lm_loss, scaled_embedding
from vram_plan.estimator.blocks.llama import decoder, gated_mlp, self_attention
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def norm(f: Forward, name: str, x: Tensor) -> Tensor:
    """``GemmaRMSNorm`` over the whole width."""
    return f.rms_norm_wide(name, x, f.spec.hidden_size, centered=True)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``GemmaDecoderLayer.forward``, transformers 5.23.0 ``models/gemma/modeling_gemma.py``."""
    residual = x
    x = norm(f, "input_layernorm", x)
    x = self_attention(f, x, shared["cos"], shared["sin"])
    x = f.add(residual, x)
    residual = x
    x = norm(f, "post_attention_layernorm", x)
    x = gated_mlp(f, x)
    return f.add(residual, x)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary and the loss."""
    x = norm(f, "norm", x.moved())
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``GemmaForCausalLM``."""
    return decoder(spec, layer, head=head, embed=scaled_embedding)
