"""Embedding and head of language models: the lookup, the projection to the vocabulary, the loss."""

from __future__ import annotations

from collections.abc import Mapping

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, cross_entropy
from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    copy,
    narrow,
    scale,
    tanh,
)
from vram_plan.estimator.ops.embedding import LeafVariable
from vram_plan.estimator.ops.fused_losses import (
    CHUNK_TOKENS,
    Chunk,
    checkpointed,
    entropy_beside_loss,
    fused_cross_entropy,
    fused_linear_cross_entropy,
    pick_rows,
    plus_bias,
    widened,
)
from vram_plan.estimator.ops.linear import linear
from vram_plan.estimator.tape import Param, Tape, Tensor

Head = tuple[Param, Param | None]
"""Weight and bias of the projection to the vocabulary."""


def token_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` and what the method prepends to it."""
    x = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size)
    return f.how.method.embed(f, x)


def scaled_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` times a number that is a buffer of the model (Gemma)."""
    x = f.embedding("embed_tokens", ids, f.spec.vocab_size, f.spec.hidden_size)
    asked = isinstance(x.node, LeafVariable)
    if asked:
        x.node = None  # the module's output is the product: that one is asked for its gradient
    x = scale(f.t, x)
    if asked:
        x.node = LeafVariable(x.storage)
    return f.how.method.embed(f, x)


def multiplied_embedding(f: Forward, ids: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """``embed_tokens`` times a number of the configuration, whoever made it (Granite)."""
    return scale(f.t, token_embedding(f, ids, shared))


def causal_lm_loss(f: Forward, x: Tensor, *, width: int = 0, scaled: bool = False) -> Tensor:
    """``lm_head`` and the loss of the configuration; ``scaled``: logits are times a number.

    ``hf`` is ``ForCausalLMLoss`` of transformers 5.23.0 ``loss/loss_utils.py``. The model's output
    holds the 16-bit logits until the loss is taken from it.
    """
    f.frame.leave()
    with f.t.scope("logits"):
        if f.how.loss in ("liger", "chunked"):
            return fused_head(f, x, width or f.spec.hidden_size)
        logits = f.head_linear(x, (width or f.spec.hidden_size, f.spec.vocab_size))
        if scaled:
            logits = scale(f.t, logits)
        if f.spec.final_logit_softcapping:
            logits = scale(f.t, logits)
            logits = tanh(f.t, logits)
            logits = scale(f.t, logits)
        if f.how.loss_code == "rebound":
            logits = cast(f.t, logits, FP32_BYTES)
        f.returned.hold(logits)
        if f.how.keeps_outputs and logits.storage is not None:
            f.t.attached.append(logits.storage)
        loss = _late_shift if f.how.loss_code == "narrow" else shifted_loss
        out = loss(f, logits)
        if f.how.widens_outputs and logits.itemsize < FP32_BYTES:
            f.t.new(logits.numel, FP32_BYTES)  # beside the ones that the model returns
        return out


def shifted_loss(f: Forward, logits: Tensor) -> Tensor:
    """``ForCausalLMLoss`` on logits, in fp32.

    Now the labels are padded by one, then copied from the second on; until transformers 4.48
    (``loss_code``) the logits were copied without each sequence's last. A batch of one needs
    neither copy: its slices are contiguous.
    """
    t, wide = f.t, cast(f.t, logits, FP32_BYTES)
    if f.how.loss_code == "padded":
        padded = t.new(f.tokens + f.batch, INDEX_BYTES)
        labels = t.new(f.tokens, INDEX_BYTES) if f.batch > 1 else padded
        loss = _kernel(f, wide, labels)
        del padded
        return loss
    tokens = f.tokens - f.batch
    shifted = narrow(t, wide, wide.numel // f.tokens * tokens)
    if f.batch > 1:
        shifted = copy(t, shifted)
    return _kernel(f, shifted, t.new(tokens, INDEX_BYTES))


def late_shift_loss(f: Forward, x: Tensor, *, wide: bool) -> Tensor:
    """The loss of model code kept beside weights: logits are copied without each one's last token.

    ``wide``: in fp32, the 16-bit logits gone (ChatGLM, InternLM); else in the logits' dtype
    (Baichuan, Qwen).
    """
    t = f.t
    f.frame.leave()
    with t.scope("logits"):
        logits = f.head_linear(x, (f.spec.hidden_size, f.spec.vocab_size))
        if wide:
            logits = cast(t, logits, FP32_BYTES)
        f.returned.hold(logits)
        out = _late_shift(f, logits)
        if f.how.widens_outputs and logits.itemsize < FP32_BYTES:
            t.new(logits.numel, FP32_BYTES)  # beside the ones that the model returns
        return out


def _late_shift(f: Forward, logits: Tensor) -> Tensor:
    """The loss of shifted logits in their own dtype."""
    t, tokens = f.t, f.tokens - f.batch
    shifted = narrow(t, logits, logits.numel // f.tokens * tokens)
    if f.batch > 1:
        shifted = copy(t, shifted)
    labels = t.new(tokens, INDEX_BYTES)
    if f.how.loss == "fused-ce":
        return fused_cross_entropy(t, shifted, tokens)
    autocast = f.how.autocast and logits.itemsize != FP32_BYTES
    return cross_entropy(t, shifted, labels, autocast=autocast)


def _kernel(f: Forward, logits: Tensor, labels: Tensor) -> Tensor:
    if f.how.loss == "fused-ce":
        return fused_cross_entropy(f.t, logits, labels.numel)
    return cross_entropy(f.t, logits, labels)


def fused_head(f: Forward, x: Tensor, width: int) -> Tensor:
    """Losses that never hold the logits of all tokens."""
    t, outputs = f.t, -(-f.spec.vocab_size // f.how.tensor)
    tied = f.spec.tie_word_embeddings
    name = f"{'embed_tokens' if tied else 'lm_head'}.weight"
    weight = f.param(name, (outputs, width), "head")
    bias = f.param("lm_head.bias", outputs, "bias") if f.spec.lm_head_bias else None
    if f.how.loss == "chunked":
        return chunked_loss(f, x, (weight, bias), outputs)
    padded = t.new(f.tokens + f.batch, INDEX_BYTES)
    labels = t.new(f.tokens, INDEX_BYTES) if f.batch > 1 else padded
    del padded
    cache = f.cache if f.how.autocast else None
    loss = fused_linear_cross_entropy(t, x, (weight, bias), outputs, cache)
    del labels
    return loss


def chunked_loss(f: Forward, x: Tensor, head: Head, outputs: int) -> Tensor:
    """Head and cross-entropy in checkpointed chunks of 256 tokens, in fp32.

    huggingface/trl ``trl/trainer/sft_trainer.py``, ``_chunked_cross_entropy_loss``: tokens are
    sorted so that those with a label come first; every chunk casts the head's weight. Their
    gradients of it are one sum before that is added to an earlier micro-batch's.
    """
    t = f.t
    tokens, width = f.tokens - f.batch, x.numel // f.tokens
    hidden = narrow(t, x, tokens * width)
    if f.batch > 1:
        hidden = copy(t, hidden)
    valid, count = t.new(tokens, 1), t.new(1, INDEX_BYTES)
    chosen, labels = pick_rows(t, hidden, tokens), t.new(tokens, INDEX_BYTES)
    del hidden
    total = t.new(1, FP32_BYTES)
    for p in head:
        if p is not None:
            p.shares = -(-tokens // CHUNK_TOKENS)
    for start in range(0, tokens, CHUNK_TOKENS):
        rows = min(CHUNK_TOKENS, tokens - start)
        part = narrow(t, chosen, rows * width)
        ids = Tensor(rows, INDEX_BYTES, labels.storage)
        run = _chunk(head, ids, outputs, autocast=f.how.autocast)
        given = (head[0], head[1], ids)
        plain = head[0].itemsize == FP32_BYTES and not f.how.autocast
        total = add(t, total, checkpointed(t, part, run, given, uses_weight=plain))
    del valid, count
    return scale(t, total)


def _chunk(head: Head, labels: Tensor, outputs: int, *, autocast: bool) -> Chunk:
    """One chunk's summed loss; its accuracy and entropy are computed beside it."""
    weight, bias = head

    def run(t: Tape, part: Tensor) -> Tensor:
        seen = cast(t, part, FP32_BYTES)
        wide = widened(t, weight, autocast=autocast)
        if autocast:
            seen = cast(t, seen, wide.itemsize)
        logits = linear(t, seen, wide, None, outputs)
        del seen, wide
        if bias is not None:
            logits = plus_bias(t, logits, bias)
        return entropy_beside_loss(t, logits, labels)

    return run
