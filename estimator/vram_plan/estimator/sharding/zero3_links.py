"""ZeRO-3's chain: every block's fullest moment with the weights that are gathered meanwhile.

Gathered weights come and go with the modules of a block, and layer by layer otherwise, so layers
beside which the same is gathered are a link here. Source: DeepSpeed 0.19.8
``deepspeed/runtime/zero/partitioned_param_coordinator.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from vram_plan.estimator.chain import Link
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.gathering import Beside, pause
from vram_plan.estimator.sharding.zero3_gathered import GATHER, gathered
from vram_plan.estimator.sharding.zero_calls import within_leaf
from vram_plan.estimator.sharding.zero_gather import Gathered, Told
from vram_plan.estimator.sharding.zero_layout import leaf_of
from vram_plan.estimator.sharding.zero_parts import Shares
from vram_plan.estimator.sharding.zero_profile import Spans, profile
from vram_plan.estimator.simulate import Bytes

__all__ = ["with_gathered"]

_Moment = tuple[int, int, Bytes]
"""Bytes gathered, those of small codes that did not run yet, and what the segment itself holds."""
_NOTHING: _Moment = (0, 0, {})


def with_gathered(shares: Shares) -> tuple[Link, ...]:
    """The chain with what is gathered beside every layer."""
    seen = gathered(shares)
    if not seen.peaks:
        return shares.links
    chain = enumerate(shares.links)
    return tuple(dressed for index, link in chain for dressed in _dressed(link, index, seen))


def _dressed(link: Link, index: int, seen: Gathered) -> Iterator[Link]:
    """A link, in pieces where its layers differ in what is gathered beside them."""
    if link.run is None:
        yield link
        return
    known, backward = profile(link.run), link.cost.backward
    if link.segment.kind == "head":
        at = ("forward", index, 0)
        before, ahead = _head(seen, known.forward, at)
        yield _before_loss(link, before)
        back = _fullest(seen, known.backward, ("backward", index, 0)) if backward else _NOTHING
        yield _piece(link, (ahead, back), range(1))
        return
    leaf = leaf_of(link)

    def moments(layer: int) -> tuple[_Moment, _Moment]:
        ahead = _fullest(seen, known.forward, ("forward", index, layer), leaf)
        at = ("backward", index, layer)
        return ahead, _fullest(seen, known.backward, at, leaf) if backward else _NOTHING

    def beside(layer: int) -> tuple[Told | None, ...]:
        return tuple(seen.beside.get((way, index, layer)) for way in ("forward", "backward"))

    alike = (list(layers) for _, layers in groupby(range(link.count), key=beside))
    for fullest, pieces in groupby(alike, key=lambda layers: moments(layers[0])):
        yield _piece(link, fullest, [layer for layers in pieces for layer in layers])


def _piece(link: Link, moments: tuple[_Moment, _Moment], layers: Sequence[int]) -> Link:
    """Layers of a link beside which the same is gathered."""
    (*ahead, forward), (*back, backward) = moments
    return replace(
        link,
        count=len(layers),
        first=link.first + layers[0] if link.first >= 0 else link.first,
        cost=replace(link.cost, forward=forward, backward=backward),
        beside_forward=_held(*ahead),
        beside_backward=_held(*back),
    )


def _fullest(seen: Gathered, spans: Spans, at: tuple[str, int, int], leaf: str = "") -> _Moment:
    """The module during which most is there: when its weights are fetched, or while it runs."""
    left, fetched = seen.left.get(at, 0), set()
    moments: list[_Moment] = [(left, 0, {})]
    for module, span in spans.items():
        where = (*at, within_leaf(module, leaf))
        codes = seen.codes.get(where, 0)
        moments.append((seen.running.get(where, left), codes, span.fullest))
        if where not in fetched:
            moments.append((seen.peaks.get(where, 0), codes, span.begin))
        fetched.add(where)
    return max(moments, key=_total)


def _total(moment: _Moment) -> int:
    return moment[0] + moment[1] + sum(moment[2].values())


def _head(seen: Gathered, spans: Spans, at: tuple[str, int, int]) -> tuple[_Moment, _Moment]:
    """The fullest moment until the last weights are fetched, no logits being there, and after."""
    last = next(reversed(spans))
    where = (*at, last)
    unpacked = max(nbytes for place, nbytes in seen.peaks.items() if place[:3] == at)
    after = seen.running.get(where, seen.left.get(at, 0)), 0, spans[last].fullest
    earlier = _fullest(seen, {name: span for name, span in spans.items() if name != last}, at)
    return max(earlier, (unpacked, 0, spans[last].begin), key=_total), after


def _before_loss(link: Link, moment: _Moment) -> Link:
    """The first of them as a moment of its own."""
    stop = pause("gathering the head", "head", link.cost.left, Beside(forward=_held(*moment[:2])))
    return replace(stop, cost=replace(stop.cost, forward=moment[2]))


def _held(nbytes: int, codes: int) -> tuple[Entry, ...]:
    small = Entry(
        component="buffers",
        name="small weights in 8 bits, gathered by the update before, that did not run yet",
        bytes=codes,
        formula=f"{codes:,} bytes, until the layer puts the codes of its own state there",
        source="bitsandbytes 0.50.2 bitsandbytes/nn/modules.py Linear8bitLt.forward",
    )
    return (
        *((small,) if codes else ()),
        Entry(
            component="temporaries",
            name="weights gathered",
            bytes=nbytes,
            formula="weights of running modules, of those needed again soon and of those "
            "gathered ahead, with the buckets they are unpacked from",
            source=GATHER,
        ),
    )
