"""ZeRO-3's chain: every block's fullest moment with the weights that are gathered meanwhile.

Gathered weights come and go with the modules of a block, and layer by layer otherwise, so every
layer is a link of its own here. Source: DeepSpeed 0.19.8
``deepspeed/runtime/zero/partitioned_param_coordinator.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vram_plan.estimator.chain import Link
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.gathering import Beside, pause
from vram_plan.estimator.sharding.zero3_gathered import GATHER, gathered
from vram_plan.estimator.sharding.zero_gather import Gathered
from vram_plan.estimator.sharding.zero_parts import Shares
from vram_plan.estimator.sharding.zero_profile import Spans, profile
from vram_plan.estimator.simulate import Bytes

__all__ = ["with_gathered"]

_Moment = tuple[int, Bytes]
"""Bytes gathered, and what the segment itself holds."""


def with_gathered(shares: Shares) -> tuple[Link, ...]:
    """The chain with what is gathered beside every layer."""
    seen = gathered(shares)
    if not seen.peaks:
        return shares.links
    return tuple(
        dressed
        for index, link in enumerate(shares.links)
        for layer in range(link.count)
        for dressed in _layer(link, (index, layer), seen)
    )


def _layer(link: Link, at: tuple[int, int], seen: Gathered) -> Iterator[Link]:
    first = link.first + at[1] if link.first >= 0 else link.first
    one = replace(link, count=1, first=first)
    if link.run is None:
        yield one
        return
    known, cost = profile(link.run), link.cost
    ahead = _fullest(seen, known.forward, ("forward", *at))
    if link.segment.kind == "head":
        before, ahead = _head(seen, known.forward, ("forward", *at))
        yield _before_loss(link, before)
    back = _fullest(seen, known.backward, ("backward", *at)) if cost.backward else (0, {})
    yield replace(
        one,
        cost=replace(cost, forward=ahead[1], backward=back[1]),
        beside_forward=_held(ahead[0]),
        beside_backward=_held(back[0]),
    )


def _fullest(seen: Gathered, spans: Spans, at: tuple[str, int, int]) -> _Moment:
    """The module during which most is there: when its weights are fetched, or while it runs."""
    left = seen.left.get(at, 0)
    moments: list[_Moment] = [(left, {})]
    for module, span in spans.items():
        where = (*at, module)
        moments.append((seen.running.get(where, left), span.fullest))
        moments.append((seen.peaks.get(where, 0), span.begin))
    return max(moments, key=_total)


def _total(moment: _Moment) -> int:
    return moment[0] + sum(moment[1].values())


def _head(seen: Gathered, spans: Spans, at: tuple[str, int, int]) -> tuple[_Moment, _Moment]:
    """The fullest moment until the last weights are fetched, no logits being there, and after."""
    last = next(reversed(spans))
    where = (*at, last)
    unpacked = max(nbytes for place, nbytes in seen.peaks.items() if place[:3] == at)
    after = seen.running.get(where, seen.left.get(at, 0)), spans[last].fullest
    earlier = _fullest(seen, {name: span for name, span in spans.items() if name != last}, at)
    return max(earlier, (unpacked, spans[last].begin), key=_total), after


def _before_loss(link: Link, moment: _Moment) -> Link:
    """The first of them as a moment of its own."""
    stop = pause("gathering the head", "norm", link.cost.left, Beside(forward=_held(moment[0])))
    return replace(stop, cost=replace(stop.cost, forward=moment[1]))


def _held(nbytes: int) -> tuple[Entry, ...]:
    return (
        Entry(
            component="temporaries",
            name="weights gathered",
            bytes=nbytes,
            formula="weights of running modules, of those needed again soon and of those "
            "gathered ahead, with the buckets they are unpacked from",
            source=GATHER,
        ),
    )
