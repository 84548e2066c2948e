"""Embedding and head of language models: the lookup, the projection to the vocabulary, the loss."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import cross_entropy
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.tape import Tensor


def token_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` and what the method prepends to it."""
    x = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size)
    return f.how.method.embed(f, x)


def causal_lm_loss(f: Forward, x: Tensor, *, width: int = 0) -> Tensor:
    """``lm_head`` and ``ForCausalLMLoss``: logits in fp32, then cross-entropy.

    transformers 5.23.0 ``loss/loss_utils.py``. The caller keeps the 16-bit logits until the model
    returns; the shifted labels (8 bytes a token) are kept by the loss.
    """
    with f.t.scope("logits"):
        logits = f.head_linear(x, (width or f.spec.hidden_size, f.spec.vocab_size))
        labels = f.t.new(f.tokens, 8)
        loss = _upcast_loss(f, logits)
        del labels
        return loss


def _upcast_loss(f: Forward, logits: Tensor) -> Tensor:
    wide = cast(f.t, logits, FP32_BYTES)
    return cross_entropy(f.t, wide)
