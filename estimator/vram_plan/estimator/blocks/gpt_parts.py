"""Pieces that the families around GPT-2 share."""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.scores import Written, merged, written
from vram_plan.estimator.ops.attention import Heads
from vram_plan.estimator.segment import Shared
from vram_plan.estimator.tape import Tensor

INDEX_BYTES = 8


def lent(x: Tensor) -> Tensor:
    """``x`` without its bytes: `Composition.shared` counts them for as long as the model holds it."""
    return Tensor(x.numel, x.itemsize, None, x.node)


def written_attention(
    f: Forward, q: Tensor, k: Tensor, v: Tensor, how: Written, **shape: int | float | bool
) -> Tensor:
    """The kernel of the configuration; ``eager`` as the class writes it."""
    if f.how.attention != "eager":
        return f.attention(q, k, v, **shape)
    how = replace(how, mask_bytes=f.how.compute_bytes, autocast=f.how.autocast)
    return merged(f.t, written(f.t, q, k, v, Heads(**f._heads(shape)), how))


def mask(f: Forward) -> dict[str, Shared]:
    """The causal mask [batch, 1, seq, seq] that only ``eager`` attention is given."""
    if f.how.attention != "eager":
        return {}
    return {"mask": Shared(numel=f.batch * f.seq * f.seq, itemsize=f.how.compute_bytes, saved=False)}


def position_inputs(f: Forward) -> dict[str, Shared]:
    """Position ids, and the two lookups that ``forward`` keeps as local variables."""
    hidden, itemsize = f.spec.hidden_size, f.how.weights_bytes
    return {
        "position_ids": Shared(numel=f.seq, itemsize=INDEX_BYTES),
        "inputs_embeds": Shared(numel=f.tokens * hidden, itemsize=itemsize, saved=False),
        "position_embeds": Shared(numel=f.seq * hidden, itemsize=itemsize, saved=False),
        **mask(f),
    }
