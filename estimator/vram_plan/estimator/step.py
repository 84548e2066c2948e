"""The instants of a training step: what is alive in each, from the costs of a chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from vram_plan.estimator.chain import Link
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.simulate import Bytes

FORWARD, LOSS = "forward", "loss"
LOSS_BACKWARD, EMBEDDING_BACKWARD = "loss_backward", "embedding_backward"
BACKWARD_LAST, BACKWARD_FIRST = "backward_last_layer", "backward_first_layer"
CLIPPING, OPTIMIZER_STEP = "gradient_clipping", "optimizer_step"
PASSES = (FORWARD, LOSS, LOSS_BACKWARD, BACKWARD_LAST, BACKWARD_FIRST, EMBEDDING_BACKWARD)
"""Instants of the forward and backward pass, in order."""
TRAINING = (*PASSES, CLIPPING, OPTIMIZER_STEP)

TAPE_SOURCE = "torch 2.13.0 tools/autograd/derivatives.yaml, transformers 5.23.0 modeling code"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The fullest moment of one segment's pass within the whole step.

    Attributes:
        instant: the instant it stands for.
        where: the segment.
        earlier: activations that other segments keep: unfinished ones, or until the loss goes.
        inside: what is alive inside the segment, by component.
        gradients: weight gradients that later segments have left.
        beside: what the engine holds meanwhile.
    """

    instant: str
    where: str
    earlier: Bytes
    inside: Bytes
    gradients: int
    beside: tuple[Entry, ...] = ()

    @property
    def total(self) -> int:
        """Bytes alive, without what lives all the time."""
        held = sum(entry.bytes for entry in self.beside)
        return sum(self.earlier.values()) + sum(self.inside.values()) + self.gradients + held


def moments(links: tuple[Link, ...]) -> dict[str, Moment]:
    """The fullest moment of every instant of the forward and backward pass."""
    best: dict[str, Moment] = {}
    for moment in _all_moments(links):
        known = best.get(moment.instant)
        if known is None or moment.total > known.total:
            best[moment.instant] = moment
    return best


def _all_moments(links: tuple[Link, ...]) -> Iterator[Moment]:
    earlier: Bytes = {}
    cast: Bytes = {}
    blocks = (i for i, link in enumerate(links) if link.segment.kind == "layer" and link.run)
    last_block = max(blocks, default=len(links))
    gradients_after = _suffix_sums([link.cost.gradients * link.count for link in links])
    early = sum(link.cost.early * link.count for link in links)
    waiting_after = _suffix_sums([link.cost.waiting * link.count for link in links])
    attached_after = _suffix_sums([link.cost.attached * link.count for link in links])
    asked_after = _asked_after(links)
    reduced_after = _suffix_sums([link.cost.reduced * link.count for link in links])
    opened = list(accumulate(link.opened for link in links))
    ahead = [nbytes + opened[-1] for nbytes in _ahead(links)]
    for i, link in enumerate(links):
        cost, kind = link.cost, link.segment.kind
        before_last = _plus(earlier, cost.saved, link.count - 1)
        # What autocast has cast stays until the loss is there.
        cast_before = _plus(cast, cost.cast, link.count - 1)
        where = _where(link, link.count - 1)
        forward = LOSS if kind == "head" else FORWARD
        yield Moment(
            instant=forward,
            where=where,
            earlier=_plus(_plus(before_last, cast_before, 1), {"activations": ahead[i]}, 1),
            inside=cost.forward,
            gradients=0,
            beside=link.beside_forward,
        )
        if cost.backward:
            # What waits for segments that have not gone back yet; the own part is inside.
            waiting = waiting_after[0] - waiting_after[i]
            later = gradients_after[i + 1] + early + waiting
            last = _instant(kind, i >= last_block)
            attached = {
                "activations": attached_after[i + 1] + opened[i],
                "temporaries": asked_after[i + 1],
                "buffers": reduced_after[i + 1],
            }
            yield Moment(
                instant=last,
                where=where,
                earlier=_plus(before_last, attached, 1),
                inside=cost.backward,
                gradients=later + (link.count - 1) * cost.waiting,
                beside=link.beside_backward,
            )
            if link.count > 1:
                later += (link.count - 1) * cost.gradients
                attached["activations"] += (link.count - 1) * cost.attached
                attached["temporaries"] += (link.count - 1) * (cost.asked + cost.left_late)
                attached["buffers"] += (link.count - 1) * cost.reduced
                first = _instant(kind, False)
                yield Moment(
                    instant=first,
                    where=_where(link, 0),
                    earlier=_plus(earlier, attached, 1),
                    inside=cost.backward,
                    gradients=later,
                    beside=link.beside_backward,
                )
        earlier = _plus(earlier, cost.saved, link.count)
        cast = _plus(cast, cost.cast, link.count)
    if early or waiting_after[0]:
        yield from _regularized(links, _plus(earlier, {"activations": opened[-1]}, 1), cast)


def _regularized(links: tuple[Link, ...], kept: Bytes, cast: Bytes) -> Iterator[Moment]:
    """A loss of which a part is made of weights: that part's tape beside all the others.

    It is made last, while the caller still holds the logits, and goes back first.
    """
    inside: Bytes = {}
    for link in links:
        inside = _plus(inside, link.cost.with_loss, link.count)
    head = next((link for link in reversed(links) if link.run), links[-1])
    where = _where(head, head.count - 1)
    yield Moment(
        instant=LOSS,
        where=where,
        earlier=_plus(kept, cast, 1),
        inside=_plus(inside, head.cost.returned, 1),
        gradients=0,
        beside=head.beside_forward,
    )
    yield Moment(
        instant=LOSS_BACKWARD,
        where=where,
        earlier=kept,
        inside=inside,
        gradients=0,
        beside=head.beside_backward,
    )


def _ahead(links: tuple[Link, ...]) -> list[int]:
    """Beside each segment, prefixes of the blocks to come; the first one has made them itself."""
    taken = _suffix_sums([link.cost.taken * link.count for link in links])
    maker = next((i for i, link in enumerate(links) if link.run is not None), len(links))
    return [taken[i + 1] if i > maker else 0 for i in range(len(links))]


def _asked_after(links: tuple[Link, ...]) -> list[int]:
    """Gradients of tensors that are no weights, which the segments from each one on have left.

    Those of prefixes are in the tape of the block that made them, and gone before it.
    """
    asked = _suffix_sums([link.cost.asked * link.count for link in links])
    late = _suffix_sums([link.cost.left_late * link.count for link in links])
    maker = next((i for i, link in enumerate(links) if link.run and link.run.late), -1)
    return [one + (late[i] if i > maker + 1 else 0) for i, one in enumerate(asked)]


def _instant(kind: str, last: bool) -> str:
    if kind == "layer":
        return BACKWARD_LAST if last else BACKWARD_FIRST
    return LOSS_BACKWARD if kind == "head" else EMBEDDING_BACKWARD


def _where(link: Link, offset: int) -> str:
    return f"{link.segment.name}.{link.first + offset}" if link.first >= 0 else link.segment.name


def _plus(base: Bytes, extra: Bytes, times: int) -> Bytes:
    result = dict(base)
    for component, nbytes in extra.items():
        result[component] = result.get(component, 0) + nbytes * times
    return result


def _suffix_sums(values: list[int]) -> list[int]:
    sums = [0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]


def pass_entries(links: tuple[Link, ...]) -> list[Entry]:
    """Ledger entries of the forward and backward pass."""
    entries: list[Entry] = []
    for moment in moments(links).values():
        alive = frozenset({moment.instant})
        entries += [replace(entry, alive=alive) for entry in moment.beside]
        for component, nbytes in moment.earlier.items():
            entries.append(
                Entry(
                    component=component,
                    name=f"kept for the backward pass before {moment.where}",
                    bytes=nbytes,
                    formula=_kept_formula(links, moment.where),
                    source=TAPE_SOURCE,
                    alive=alive,
                )
            )
        for component, nbytes in moment.inside.items():
            entries.append(
                Entry(
                    component=component,
                    name=f"alive in {moment.where} at its fullest moment",
                    bytes=nbytes,
                    formula=f"tape of {moment.where}: live {component} at its peak",
                    source=TAPE_SOURCE,
                    alive=alive,
                )
            )
        if moment.gradients:
            entries.append(
                Entry(
                    component="gradients",
                    name=f"gradients of what comes after {moment.where}",
                    bytes=moment.gradients,
                    formula="weight gradients of finished segments",
                    source="torch 2.13.0 torch/csrc/autograd/functions/accumulate_grad.h",
                    alive=alive,
                )
            )
    return entries


def _kept_formula(links: tuple[Link, ...], where: str) -> str:
    parts = []
    for link in links:
        if _where(link, link.count - 1) == where:
            break
        kept = sum(link.cost.saved.values())
        if kept:
            parts.append(f"{link.count} × {kept:,} ({link.segment.name})")
    return " + ".join(parts) or "the same kept bytes for each earlier layer"


def gradient_bytes(links: tuple[Link, ...]) -> int:
    """All weight gradients that the backward pass leaves."""
    return sum((link.cost.gradients + link.cost.early) * link.count for link in links)
