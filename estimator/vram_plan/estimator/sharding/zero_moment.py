"""What else is alive when a bucket of gradients is reduced in the middle of the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.replicated import waiting_entry
from vram_plan.estimator.sharding.zero_layout import Piece
from vram_plan.estimator.sharding.zero_parts import REDUCTION, Shares
from vram_plan.estimator.simulate import Bytes
from vram_plan.estimator.step import TAPE_SOURCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A reduction that may be the fullest.

    Attributes:
        at: the weight whose gradient arrives; None once the backward pass is over.
        copied: bytes of the flat copy it makes.
        held: bytes of what else is there: a partition's gradients, gathered weights.
    """

    at: Piece | None
    copied: int
    held: int


def fullest(shares: Shares, candidates: Sequence[Candidate]) -> Candidate:
    """The reduction during which most is alive."""

    def total(candidate: Candidate) -> int:
        alive = 0
        if candidate.at is not None:
            alive = shares.kept[candidate.at.link]
            alive += candidate.at.layer * shares.saved[candidate.at.link]
            alive += sum(inside(shares, candidate.at).values()) + _waiting(shares, candidate.at)
        return alive + candidate.copied + candidate.held

    return max(candidates, key=total)


def inside(shares: Shares, at: Piece) -> Bytes:
    """Bytes by component in the segment of a weight when its gradient arrives.

    The segment's own gradients are in the bucket by then, except the one that arrives. Where the
    moment is not known, the fullest one of the segment stands for it.
    """
    found = shares.arriving.get((at.link, at.key[2]), shares.links[at.link].cost.backward)
    return {**found, "gradients": shares.width * at.numel}


def activations_at(shares: Shares, at: Piece | None) -> Bytes:
    """What earlier segments keep, and what this one has at that moment."""
    if at is None:
        return {}
    alive: Bytes = {}
    for link in shares.links[: at.link]:
        _add(alive, link.cost.saved, link.count)
    _add(alive, shares.links[at.link].cost.saved, at.layer)
    _add(alive, inside(shares, at), 1)
    _add(alive, {"gradients": _waiting(shares, at)}, 1)
    return alive


def _waiting(shares: Shares, at: Piece) -> int:
    """A tied table's gradient from the head, until the lookup's joins it."""
    behind = shares.links[at.link].segment.kind == "embedding"
    return 0 if behind else waiting_entry(shares.rank).bytes


def _add(total: Bytes, part: Bytes, times: int) -> None:
    for component, nbytes in part.items():
        total[component] = total.get(component, 0) + nbytes * times


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
            name=f"gradient of {where} that arrives while a bucket is reduced"
            if component == "gradients"
            else f"alive in {where} and before it while a bucket is reduced",
            bytes=nbytes,
            formula="kept by earlier segments, and what this one has at that moment",
            source=TAPE_SOURCE,
            alive=alive,
        )
        for component, nbytes in activations_at(shares, chosen.at).items()
    ]
    entries.append(
        Entry(
            component="temporaries",
            name="copies made for the reduction of a bucket",
            bytes=chosen.copied,
            formula=f"{chosen.copied:,} bytes",
            source=source,
            alive=alive,
        )
    )
    return entries
