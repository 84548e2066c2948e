"""Segments: the pieces of a model between which only one tensor (and a few shared ones) passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

Run = Callable[["Forward", "Tensor", "Mapping[str, Tensor]"], "Tensor"]
Kind = Literal["embedding", "layer", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One piece of a model, repeated ``count`` times in a row with equal memory.

    Attributes:
        name: module path of the piece (``model.layers``).
        kind: ``embedding`` reads token ids, a ``layer`` can be checkpointed, the ``head`` ends in
            the loss.
        run: the composition: (forward, input, shared tensors) → output.
        count: how many pieces like this follow one another.
        first: index of the first of them among the model's blocks (−1 outside the blocks).
        stack: ``decoder`` or ``encoder``: which sequence it reads.
        produces: name under which its last output is shared with later segments (the encoder's
            output), empty for none.
        reads: shared tensors that carry a gradient back (the encoder's output).
    """

    name: str
    kind: Kind
    run: Run
    count: int = 1
    first: int = -1
    stack: Literal["decoder", "encoder"] = "decoder"
    produces: str = ""
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A tensor that every layer reads and that lives for the whole step (cos, sin, a mask).

    Attributes:
        numel: elements.
        itemsize: bytes per element.
        saved: it lives until the backward pass needs it (else until the forward pass ends).
    """

    numel: int
    itemsize: int
    saved: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """An architecture: its segments in forward order and the tensors they share."""

    segments: tuple[Segment, ...]
    shared: Callable[["Forward"], Mapping[str, Shared]]
