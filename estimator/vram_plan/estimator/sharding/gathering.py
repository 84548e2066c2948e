"""A chain whose blocks are gathered before they run, with what that holds in every moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.segment import Kind, Segment
from vram_plan.estimator.simulate import Boundary, Cost
from vram_plan.estimator.tape import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What an engine holds beside one link's passes, and what it does with its gradients.

    Attributes:
        forward: held while it runs forward.
        backward: held while it goes back.
        kept: bytes that stay from its forward pass until its backward pass is done.
        gradients: bytes of gradients it leaves; None for those of the tape.
        reduced: bytes of buffers that stay from its reduction until the backward pass is over.
    """

    forward: tuple[Entry, ...] = ()
    backward: tuple[Entry, ...] = ()
    kept: int = 0
    gradients: int | None = None
    reduced: int = 0


def neighbours(chain: tuple[Link, ...]) -> Iterator[tuple[Link, Link | None, Link | None]]:
    """Every link with the block that runs before the first of it and after the last of it."""
    blocks = [link if link.segment.kind == "layer" else None for link in chain]
    for i, link in enumerate(chain):
        before = next((b for b in reversed(blocks[:i]) if b is not None), None)
        after = next((b for b in blocks[i + 1 :] if b is not None), None)
        yield link, before, after


def dress(link: Link, beside: Beside) -> Link:
    """The link with what the engine holds beside it."""
    cost = link.cost
    if beside.gradients is not None:
        cost = replace(cost, gradients=beside.gradients)
    if beside.reduced:
        cost = replace(cost, reduced=beside.reduced)
    if beside.kept:
        saved = dict(cost.saved)
        saved["temporaries"] = saved.get("temporaries", 0) + beside.kept
        cost = replace(cost, saved=saved)
    return replace(link, cost=cost, beside_forward=beside.forward, beside_backward=beside.backward)


def pause(name: str, kind: Kind, left: Boundary, beside: Beside) -> Link:
    """A moment between two segments: the tensor that passes between them, and what is held.

    It is a segment that computes nothing; gathering before a block and reducing after one fall
    into such moments.
    """
    segment = Segment(name=name, kind=kind, run=_passes_on)
    grad = left.nbytes if left.requires_grad else 0
    cost = Cost(
        params=(),
        saved={},
        cast={},
        forward={"activations": left.nbytes} if beside.forward else {},
        backward={"temporaries": grad} if beside.backward else {},
        gradients=beside.gradients or 0,
        left=left,
    )
    return Link(
        segment=segment,
        count=1,
        first=-1,
        cost=cost,
        beside_forward=beside.forward,
        beside_backward=beside.backward,
    )


def _passes_on(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    return x
