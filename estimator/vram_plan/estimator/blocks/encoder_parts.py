"""Pieces that BERT's and BART's relatives share."""

from __future__ import annotations

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, cross_entropy
from vram_plan.estimator.ops.fused_losses import fused_cross_entropy
from vram_plan.estimator.ops.plain_attention import plain
from vram_plan.estimator.segment import Shared
from vram_plan.estimator.tape import Tensor


def attend(
    f: Forward,
    parts: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None = None,
    **shape: int | float | bool,
) -> tuple[Tensor, Tensor | None]:
    """The kernel of the configuration on q, k and v.

    ``eager``: a softmax in the scores' dtype, ``mask`` added before it, and the attention weights
    returned too.
    """
    if f.how.attention != "eager":
        q, k, v = parts
        shape |= {"masked": mask is not None}
        return f.attention(q, k, v, **shape), None
    return plain(f.t, parts, f.heads(**shape), mask=mask)


def causal_mask_bytes(f: Forward, itemsize: int) -> int:
    """Bytes per element of the decoder's mask, 0 without one.

    Additive for eager attention; booleans for sdpa, but only where a prefix makes more keys than
    queries (transformers 5.23.0 ``masking_utils.py`` ``_ignore_causal_mask_sdpa``).
    """
    if f.how.attention == "eager":
        return itemsize
    return 1 if f.how.attention == "sdpa" and f.how.method.prefix_tokens else 0


def nothing_shared(f: Forward) -> dict[str, Shared]:
    """No tables or masks: positions are looked up, and nothing is masked without padding."""
    return {}


def numbered(f: Forward) -> dict[str, Shared]:
    """``position_ids`` and ``token_type_ids``, one for each row of the table, buffers (BERT)."""
    numbers = Shared(numel=f.spec.position_embedding_rows, itemsize=INDEX_BYTES, buffer=True)
    return {"position_ids": numbers, "token_type_ids": numbers}


def transform(f: Forward, x: Tensor, names: tuple[str, str], act: str = "") -> Tensor:
    """The masked-LM head in front of the decoder: dense, activation, norm (module ``names``)."""
    f.frame.leave()
    dense, norm = names
    width = f.spec.embedding_size or f.spec.hidden_size
    x = f.linear(dense, x, (f.spec.hidden_size, width), bias=True)
    x = f.act(x, act)
    return f.layer_norm(norm, x, width)


def plain_loss(f: Forward, x: Tensor, width: int) -> Tensor:
    """The projection to the vocabulary and ``CrossEntropyLoss`` in the logits' dtype.

    ``x`` is let go once it is projected.
    """
    with f.t.scope("logits"):
        logits = f.head_linear(x.moved(), (width, f.spec.vocab_size))
        return loss_of(f, logits)


def loss_of(f: Forward, logits: Tensor) -> Tensor:
    """``CrossEntropyLoss`` on logits that the caller keeps.

    The labels are those given: they are neither shifted nor copied.
    """
    f.returned.hold(logits)
    if f.how.loss == "fused-ce":
        return fused_cross_entropy(f.t, logits, f.tokens)
    labels = Tensor(f.tokens, INDEX_BYTES, None)
    return cross_entropy(f.t, logits, labels, autocast=f.how.autocast)
