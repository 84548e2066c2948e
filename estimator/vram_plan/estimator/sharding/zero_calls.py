"""The order in which modules gather their weights: forward, recomputation and backward."""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.sharding.zero_gather import Call
from vram_plan.estimator.sharding.zero_parts import Piece, Shares

Opening = tuple[tuple[int, ...], bool]
"""The weights of a module, and whether it begins (or ends)."""


def module_calls(shares: Shares, numbers: dict[tuple[int, int, str], int]) -> Iterator[Call]:
    """Every module of one step, in order; ``numbers`` are the weights' numbers by key."""
    segments = list(_segments(shares, numbers))
    for where, openings in segments:
        for weights, opens in openings:
            yield Call(weights=weights, where=("forward", *where), opens=opens)
    checkpointed = shares.config.checkpointing in {"full", "offload"}
    for where, openings in reversed(segments):
        layered = shares.links[where[0]].segment.kind == "layer"
        if not shares.links[where[0]].cost.backward:
            continue
        if checkpointed and layered:
            for weights, opens in openings:
                yield Call(weights=weights, where=("backward", *where), opens=opens)
        for weights, opens in reversed(openings):
            yield Call(weights=weights, where=("backward", *where), opens=not opens)


def _segments(
    shares: Shares, numbers: dict[tuple[int, int, str], int]
) -> Iterator[tuple[tuple[int, int], list[Opening]]]:
    for index, link in enumerate(shares.links):
        layered = link.segment.kind == "layer"
        for layer in range(link.count):
            modules: dict[str, list[int]] = {"": []}
            for param in link.cost.params:
                key = (index, layer, param.name) if layered else (-1, -1, param.name)
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


def numbered(pieces: tuple[Piece, ...]) -> dict[tuple[int, int, str], int]:
    """A number for every weight."""
    return {piece.key: number for number, piece in enumerate(pieces)}
