"""What else is alive when a bucket of gradients is reduced in the middle of the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.zero_parts import REDUCTION, Piece, Shares
from vram_plan.estimator.simulate import Bytes
from vram_plan.estimator.step import TAPE_SOURCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A reduction that may be the fullest.

    Attributes:
        at: the weight whose gradient arrives; None once the backward pass is over.
        copied: bytes of the flat copy it makes.
        held: bytes of what else is there at this moment: a partition's gradients, gathered weights.
    """

    at: Piece | None
    copied: int
    held: int


def activations_at(shares: Shares, at: Piece | None) -> Bytes:
    """What the earlier segments keep, the fullest moment of this one's backward pass (its other
    gradients are in the bucket) and the gradient that arrives.
    """
    if at is None:
        return {}
    alive: Bytes = {}
    for link in shares.links[: at.link]:
        _add(alive, link.cost.saved, link.count)
    link = shares.links[at.link]
    _add(alive, link.cost.saved, at.layer)
    _add(alive, link.cost.backward, 1)
    alive["gradients"] = shares.width * at.numel
    return alive


def _add(total: Bytes, part: Bytes, times: int) -> None:
    for component, nbytes in part.items():
        total[component] = total.get(component, 0) + nbytes * times


def fullest(shares: Shares, candidates: Sequence[Candidate]) -> Candidate:
    """The reduction during which most is alive."""
    known: dict[tuple[int, int] | None, int] = {}

    def total(candidate: Candidate) -> int:
        at = candidate.at
        place = None if at is None else (at.link, at.layer)
        if place not in known:
            known[place] = sum(activations_at(shares, at).values())
        return known[place] + candidate.copied + candidate.held

    return max(candidates, key=total)


def moment_entries(shares: Shares, chosen: Candidate, source: str) -> list[Entry]:
    """The activations and the flat copy of the fullest reduction."""
    alive = frozenset({REDUCTION})
    where = "after the backward pass"
    if chosen.at is not None:
        link = shares.links[chosen.at.link]
        where = link.segment.name
        where += f".{link.first + chosen.at.layer}" if link.first >= 0 else ""
    entries = [
        Entry(
            component=component,
            name=f"activations while gradients of {where} are reduced",
            bytes=nbytes,
            formula="kept by earlier segments, and the fullest moment of this one",
            source=TAPE_SOURCE,
            alive=alive,
        )
        for component, nbytes in activations_at(shares, chosen.at).items()
    ]
    entries.append(
        Entry(
            component="temporaries",
            name="flat copy of a bucket for its reduction",
            bytes=chosen.copied,
            formula=f"{chosen.copied // shares.width:,} elements · {shares.width} bytes",
            source=source,
            alive=alive,
        )
    )
    return entries
