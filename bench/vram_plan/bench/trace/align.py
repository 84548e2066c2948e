"""Which event of a trace is the like of which event of a deeper model's trace."""

import re
from collections.abc import Iterator
from typing import Any

from vram_plan.bench.trace.depth import Cut
from vram_plan.bench.trace.timeline import Trace

__all__ = ["Pair", "aligned", "fullest"]

#: A pair of like events: their numbers in the short and the long trace.
Pair = tuple[int, int]
#: What an event is known by, and its number.
_Key = tuple[tuple[Any, ...], int]
#: A path through a numbered layer; the numbers in a prompt's encoder are none.
_LAYER = re.compile(r"^(?!prompt_encoder)(.*?\.)(\d+)(?=\.|$)")


def fullest(trace: Trace, phase: str) -> dict[str, int]:
    """Operator → the number of its event after which most bytes are alive."""
    found: dict[str, int] = {}
    for number, event in enumerate(trace.events):
        name = event.block.op
        if event.phase == phase and (
            name not in found or event.live > trace.events[found[name]].live
        ):
            found[name] = number
    return found


def aligned(short: Trace, long: Trace, phase: str, cut: Cut) -> list[Pair] | None:
    """Pairs of events that are each other's like; None where the traces do not fit.

    Where something outside the layers is done once for every layer (a prefix is cut up for all of
    them, AdaLoRA's penalty visits all of them), what happens between layers is taken by operator.
    """
    ours = list(_keys(short, phase, range(0), 0))
    every = [
        list(_keys(long, phase, range(first, first + cut.period), cut.period))
        for first in cut.windows
    ]
    found = _paired(ours, every)
    if found is None:
        found = _paired(_by_operator(short, ours), [_by_operator(long, keys) for keys in every])
    return found


def _paired(ours: list[_Key], every: list[list[_Key]]) -> list[Pair] | None:
    pairs: list[Pair] = []
    for theirs in every:
        if [key for key, _ in ours] != [key for key, _ in theirs]:
            return None
        pairs += [(i, j) for (_, i), (_, j) in zip(ours, theirs, strict=True)]
    return pairs


def _by_operator(trace: Trace, keys: list[_Key]) -> list[_Key]:
    """Of what follows each other outside the layers, every operator's fullest event."""
    found: list[_Key] = []
    between: dict[str, int] = {}
    for key, index in [*keys, (("", 0), -1)]:
        if key[1] is None:
            op = trace.events[index].block.op
            if op not in between or trace.events[index].live >= trace.events[between[op]].live:
                between[op] = index
            continue
        found += [(("between", op), between[op]) for op in sorted(between)]
        between = {}
        found.append((key, index))
    return found[:-1]


def _keys(trace: Trace, phase: str, dropped: range, period: int) -> Iterator[_Key]:
    """The phase's events with their places, without what happens while dropped layers run.

    A block is known by its layer's distance from the running one; where no layer runs, by its
    layer, those above the dropped ones renamed.
    """

    def renamed(layer: int | None) -> int | None:
        return layer if layer is None or layer < dropped.stop else layer - period

    for index, event in enumerate(trace.events):
        if event.phase != phase or event.delta < 0:
            continue  # a peak never comes with a free, and the order of frees is not fixed
        block = event.block
        stack, running, _ = _layer_of(event.where)
        home, layer, rest = _layer_of(block.module)
        if dropped and (layer if running is None else running) in dropped:
            continue
        near = running is not None and layer is not None and abs(layer - running) <= 1
        place: Any = renamed(layer)
        if near and home == stack:
            place = ("distance", (layer or 0) - (running or 0))
        # what belongs to no layer may grow with their number, as a prefix for all of them does
        size = event.delta if layer is not None else 0
        key = (size, block.op, block.phase, home, place, rest)
        yield (stack, renamed(running), *key), index


def _layer_of(path: str) -> tuple[str, int | None, str]:
    """The stack's path, the layer's number and the rest."""
    match = _LAYER.match(path)
    if match is None:
        return path, None, ""
    return match[1], int(match[2]), path[match.end() :]
