"""The order in which modules gather their weights: forward, recomputation and backward."""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.sharding.zero_gather import Call
from vram_plan.estimator.sharding.zero_layout import Key, Layout

Opening = tuple[tuple[int, ...], bool]
"""The weights of a module, and whether it begins (or ends)."""


def module_calls(layout: Layout, *, checkpointed: bool) -> Iterator[Call]:
    """Every module of one step, in order; weights are numbered as in ``layout.pieces``."""
    segments = list(_segments(layout))
    for where, openings in segments:
        for weights, opens in openings:
            yield Call(weights=weights, where=("forward", *where), opens=opens)
    for where, openings in reversed(segments):
        link = layout.structure[where[0]]
        if not link.returns:
            continue
        if checkpointed and link.layered:
            for weights, opens in openings:
                yield Call(weights=weights, where=("backward", *where), opens=opens)
        for weights, opens in reversed(openings):
            yield Call(weights=weights, where=("backward", *where), opens=not opens)


def _segments(layout: Layout) -> Iterator[tuple[tuple[int, int], list[Opening]]]:
    numbers: dict[Key, int] = {piece.key: n for n, piece in enumerate(layout.pieces)}
    for index, link in enumerate(layout.structure):
        for layer in range(link.count):
            modules: dict[str, list[int]] = {"": []}
            for param in link.params:
                key = (index, layer, param.name) if link.layered else (-1, -1, param.name)
                module = param.name.rpartition(".")[0]
                if key in numbers:
                    modules.setdefault(module, []).append(numbers[key])
            yield (index, layer), list(_openings(modules))


def _openings(modules: dict[str, list[int]]) -> Iterator[Opening]:
    """Open and close modules as a depth-first walk through their paths does."""
    stack: list[str] = []
    opened: list[str] = []
    for module in modules:
        path = [""] + [
            module[:i] for i in range(1, len(module) + 1) if i == len(module) or module[i] == "."
        ]
        path = path if module else [""]
        while stack and stack[-1] not in path:
            yield tuple(modules.get(stack.pop(), ())), False
        for name in path:
            if name not in stack:
                first = name not in opened
                opened.append(name)
                stack.append(name)
                yield (tuple(modules.get(name, ())) if first else ()), True
    while stack:
        yield tuple(modules.get(stack.pop(), ())), False
