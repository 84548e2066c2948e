"""Embedding and head of language models: the lookup, the projection to the vocabulary, the loss."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, cross_entropy
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast, scale, tanh
from vram_plan.estimator.tape import Tensor


def token_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` and what the method prepends to it."""
    x = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size)
    return f.how.method.embed(f, x)


def scaled_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` times a number that is a buffer of the model (Gemma)."""
    x = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size)
    return f.how.method.embed(f, scale(f.t, x))


def multiplied_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` times a number of the configuration, whoever made it (Granite)."""
    return scale(f.t, token_embedding(f, ids, shared))


def causal_lm_loss(f: Forward, x: Tensor, *, width: int = 0, scaled: bool = False) -> Tensor:
    """``lm_head`` and ``ForCausalLMLoss``: logits in fp32, then cross-entropy.

    transformers 5.23.0 ``loss/loss_utils.py``. The model's output holds the 16-bit logits until
    the loss is taken from it. ``scaled``: they are multiplied by a number first.
    """
    with f.t.scope("logits"):
        logits = f.head_linear(x, (width or f.spec.hidden_size, f.spec.vocab_size))
        if scaled:
            logits = scale(f.t, logits)
        if f.spec.final_logit_softcapping:
            logits = scale(f.t, logits)
            logits = tanh(f.t, logits)
            logits = scale(f.t, logits)
        return shifted_loss(f, logits)


def shifted_loss(f: Forward, logits: Tensor) -> Tensor:
    """``ForCausalLMLoss`` on logits: the labels are padded by one, then copied from the second on."""
    wide = cast(f.t, logits, FP32_BYTES)
    padded = f.t.new(f.tokens + f.batch, INDEX_BYTES)
    labels = f.t.new(f.tokens, INDEX_BYTES)
    loss = cross_entropy(f.t, wide, labels)
    del padded
    return loss
