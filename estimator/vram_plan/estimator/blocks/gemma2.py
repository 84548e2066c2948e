"""Gemma 2: four norms in a layer, capped scores and logits, every other layer windowed."""

from collections.abc import Mapping

from vram_plan.estimator.blocks.gemma import norm
from vram_plan.estimator.blocks.heads import causal_lm_loss, scaled_embedding
from vram_plan.estimator.blocks.llama import (
    Attention,
    decoder,
    gated_mlp,
    self_attention,
)
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tensor
from vram_plan.profiles.model import ModelSpec


def decoder_layer(f: Forward, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
    """``Gemma2DecoderLayer.forward``, transformers 5.23.0 ``models/gemma2/modeling_gemma2.py``."""
    residual = x
    x = norm(f, "input_layernorm", x)
    x = attention(f, x, cos, sin)
    x = norm(f, "post_attention_layernorm", x)
    x = f.add(residual, x)
    residual = x
    x = norm(f, "pre_feedforward_layernorm", x)
    x = gated_mlp(f, x)
    x = norm(f, "post_feedforward_layernorm", x)
    return f.add(residual, x)


def layer(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """One layer; eager attention alone caps the scores, sdpa leaves the cap out."""
    return decoder_layer(f, x, shared["cos"], shared["sin"], self_attention)


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the projection to the vocabulary, the cap and the loss."""
    x = norm(f, "norm", x.moved())
    return causal_lm_loss(f, x)


def compose(spec: ModelSpec) -> Composition:
    """``Gemma2ForCausalLM``."""
    return decoder(spec, layer, head=head, embed=scaled_embedding)
