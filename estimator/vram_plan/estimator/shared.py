"""Tensors that all layers share: which outlive the forward pass, and which end with the model's.

A layer's backward functions keep those that it saves, its checkpoint those that it was given. The
others are local variables of the model's forward (``frames.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.forward import Forward
from vram_plan.estimator.simulate import RECOMPUTED
from vram_plan.estimator.tensors import rounded

if TYPE_CHECKING:
    from vram_plan.estimator.chain import Shape
    from vram_plan.estimator.segment import Composition, Shared
    from vram_plan.estimator.treatment import Treatment
    from vram_plan.profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBytes:
    """Their bytes.

    Attributes:
        kept: of those that live until the backward pass is through with their layers.
        some: of those among them that only some layers get, with these.
        passing: of those that end with the model's forward pass.
        buffers: of the model's own tensors that are no weights.
    """

    kept: int
    some: tuple[tuple[tuple[int, ...], int], ...]
    passing: int
    buffers: int


def shared_bytes(
    spec: ModelSpec, composition: Composition, how: Treatment, shape: Shape
) -> SharedBytes:
    """The tensors that a composition lists, in a micro-batch of this shape."""
    f = Forward(spec, how, batch=shape.batch, seq=shape.seq)
    f.source_seq = shape.source_seq
    recomputes = shape.checkpoint in RECOMPUTED  # a checkpoint keeps what its layer was given
    f.input_gradients = recomputes and how.training
    stays = shape.checkpoint != "page-out"  # what is saved goes to the host
    kept, passing, buffers = [], [], []
    for one in composition.shared(f).values():
        if one.buffer:
            buffers.append(one)
        elif (one.saved and stays) or (recomputes and one.given):
            kept.append(one)
        else:
            passing.append(one)
    return SharedBytes(
        kept=_total(kept),
        some=tuple((one.layers, _total([one])) for one in kept if one.layers),
        passing=_total(passing),
        buffers=_total(buffers),
    )


def _total(tensors: Iterable[Shared]) -> int:
    return sum(rounded(one.numel * one.itemsize) for one in tensors)
