"""Which attention kernel runs, and what is done to its inputs first."""

from __future__ import annotations

from vram_plan.estimator.ops import attention, elementwise, sdpa
from vram_plan.estimator.ops.attention import Heads
from vram_plan.estimator.tape import Tape, Tensor
from vram_plan.estimator.treatment import Treatment

LOW_BYTES = 2


def attend(
    t: Tape, how: Treatment, parts: tuple[Tensor, Tensor, Tensor], heads: Heads, *, capped: bool
) -> tuple[Tensor, Tensor | None]:
    """The kernel of the configuration on queries, keys and values of this rank's heads.

    Returns the probabilities too where they are written out.
    """
    (q, k, v), kernel = parts, how.attention
    del parts
    if kernel == "eager":
        return attention.eager(t, q, k, v, heads, capped=capped)
    if how.repeats_heads and kernel in {"flash", "sdpa"}:
        k, v, heads = attention.repeated(t, k, v, heads)
    if kernel == "sdpa":
        return sdpa.integrated(t, q, k, v, heads), None
    if kernel == "block-sparse":
        return attention.block_sparse(t, (q, k, v), heads, how.attention_density), None
    if not how.autocast:
        # The kernel takes 16 bits only; transformers casts (modeling_flash_attention_utils.py
        # fa_peft_integration_check), as happens with fp32 norms over quantized weights.
        q, k, v = (elementwise.cast(t, x, LOW_BYTES) for x in (q, k, v))
    return attention.flash(t, q, k, v, heads), None
