"""Segments: the pieces of a model between which only one tensor (and a few shared ones) passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward
    from vram_plan.estimator.tape import Tensor

Run = Callable[["Forward", "Tensor", "Mapping[str, Tensor]"], "Tensor"]
Kind = Literal["embedding", "layer", "norm", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One piece of a model, repeated ``count`` times in a row with equal memory.

    Attributes:
        name: module path of the piece (``model.layers``).
        kind: ``embedding`` reads token ids, a ``layer`` can be checkpointed, a ``norm`` ends an
            encoder, the ``head`` ends in the loss.
        run: the composition: (forward, input, shared tensors) → output.
        count: how many pieces like this follow one another.
        first: index of the first of them among the model's blocks (−1 outside the blocks).
        stack: ``decoder`` or ``encoder``: which sequence it reads.
        repeats: its weights are those of a later segment (ALBERT's shared blocks): they are
            counted, and their gradients kept, there.
        reads: tensors that an earlier segment made with ``Forward.produce`` and that this one's
            ``run`` finds among the shared ones; their gradients add up over the readers.
        holds: such tensors that a variable of the library's code keeps alive during its forward
            pass without being read.
        framed: the same until the model's forward returns, in the midst of this segment.
        named: a variable of the model's forward holds its output until it returns
            (``inputs_embeds``).
    """

    name: str
    kind: Kind
    run: Run
    count: int = 1
    first: int = -1
    stack: Literal["decoder", "encoder"] = "decoder"
    repeats: bool = False
    reads: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    framed: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A tensor that every layer reads and that lives for the whole step (cos, sin, a mask).

    Attributes:
        numel: elements.
        itemsize: bytes per element.
        saved: it lives until the backward pass needs it (else until the forward pass ends).
        buffer: it belongs to the model and lives always.
        given: layers get it as an argument, so that their checkpoints keep it (else it is a local
            variable of the model's own forward).
        layers: which of them get it; empty: all. It is gone when the first of them has gone back.
    """

    numel: int
    itemsize: int
    saved: bool = True
    buffer: bool = False
    given: bool = True
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """An architecture: its segments in forward order and the tensors they share."""

    segments: tuple[Segment, ...]
    shared: Callable[[Forward], Mapping[str, Shared]]
