"""A chain whose blocks are gathered before they run, with what that holds in every moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.segment import Segment
from vram_plan.estimator.simulate import Boundary, Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What an engine holds beside one link's passes, and what it does with its gradients.

    Attributes:
        forward: held while it runs forward.
        backward: held while it goes back.
        kept: bytes that stay from its forward pass until its backward pass is done.
        gradients: bytes of gradients it leaves; None for those of the tape.
    """

    forward: tuple[Entry, ...] = ()
    backward: tuple[Entry, ...] = ()
    kept: int = 0
    gradients: int | None = None


def dress(link: Link, beside: Beside) -> Link:
    """The link with what the engine holds beside it."""
    cost = link.cost
    if beside.gradients is not None:
        cost = replace(cost, gradients=beside.gradients)
    if beside.kept:
        saved = dict(cost.saved)
        saved["temporaries"] = saved.get("temporaries", 0) + beside.kept
        cost = replace(cost, saved=saved)
    return replace(
        link, cost=cost, beside_forward=beside.forward, beside_backward=beside.backward
    )


def pause(
    name: str,
    kind: str,
    left: Boundary,
    *,
    forward: Iterable[Entry] = (),
    backward: Iterable[Entry] = (),
) -> Link:
    """A moment between two segments: the tensor that passes between them, and what is held.

    It is a segment that computes nothing; gathering before a block and reducing after one fall
    into such moments.
    """
    segment = Segment(name=name, kind=kind, run=lambda f, x, shared: x)  # type: ignore[arg-type]
    held = tuple(backward)
    passing = {"activations": left.nbytes}
    cost = Cost(
        params=(),
        saved={},
        cast=0,
        forward=passing if forward else {},
        backward={"temporaries": left.nbytes if left.requires_grad else 0} if held else {},
        gradients=0,
        left=left,
    )
    return Link(
        segment=segment,
        count=1,
        first=-1,
        cost=cost,
        beside_forward=tuple(forward),
        beside_backward=held,
    )
