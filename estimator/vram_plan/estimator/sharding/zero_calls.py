"""The order in which modules gather their weights: forward, recomputation and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vram_plan.estimator.sharding.zero_gather import AGAIN, Call
from vram_plan.estimator.sharding.zero_layout import Key, Layout

Opening = tuple[str, tuple[int, ...], bool]
"""A module's path, its weights, and whether it begins (or ends)."""
Silent = tuple[frozenset[str], ...]
Sizes = tuple[tuple[str, dict[str, int]], ...]
"""For every segment its leaf, and elements below each of its modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How the modules of a step run, beyond their order.

    Attributes:
        checkpointed: blocks run forward again before they go back.
        silent: for every segment the modules through which no gradient passes, where known.
        outside: the loss reads the head's weight without its module, so it is fetched and kept
            by the model as a whole (DeepSpeed 0.19.8 ``runtime/zero/parameter_offload.py``
            ZeROOrderedDict, ``register_external_parameter``).
        wrapped: a module of PEFT's runs around that model.
    """

    checkpointed: bool = False
    silent: Silent = ()
    outside: bool = False
    wrapped: bool = False


def module_calls(layout: Layout, course: Course) -> Iterator[Call]:
    """Every module of one step, in order; weights are numbered as in ``layout.pieces``."""
    segments = list(_segments(layout))
    sizes = _sizes(layout)
    table = _table(layout) if course.outside else ()
    if table:
        segments = [(where, _without(openings, table)) for where, openings in segments]
        if course.wrapped:
            yield Call(weights=(), where=("forward", *segments[0][0], ""), opens=True)
        yield Call(weights=table, where=("forward", *segments[0][0], ""), opens=True)
    for where, openings in segments:
        yield from _calls("forward", where, openings, sizes)
    if table:
        yield Call(weights=table, where=("forward", *segments[-1][0], ""), opens=False)
        yield Call(weights=table, where=("backward", *segments[-1][0], ""), opens=True)
    for where, openings in reversed(segments):
        link = layout.structure[where[0]]
        if not link.returns:
            continue
        again = course.checkpointed and link.layered
        if again:
            yield from _calls("backward", where, openings, sizes, AGAIN)
        back = [(name, weights, not opens) for name, weights, opens in reversed(openings)]
        quiet = _quiet(course, layout, where[0])
        calls = _calls("backward", where, [one for one in back if one[0] not in quiet], sizes)
        yield from _freeing(calls, openings) if again else calls


def _freeing(calls: Iterator[Call], openings: list[Opening]) -> Iterator[Call]:
    """The module that asked for the recomputation frees what was gathered for it as it ends.

    DeepSpeed 0.19.8 ``runtime/zero/partitioned_param_coordinator.py`` ``ds_recompute_parameters``.
    """
    weights = tuple(weight for _, found, opens in openings if opens for weight in found)
    for call in calls:
        if weights and not call.opens:
            call, weights = call._replace(frees=weights), ()
        yield call


def _quiet(course: Course, layout: Layout, index: int) -> frozenset[str]:
    """Modules through which no gradient passes; a leaf where it passes through none within."""
    quiet = course.silent[index] if course.silent else frozenset[str]()
    leaf = layout.structure[index].leaf
    if not leaf:
        return quiet
    within = {p.name.rpartition(".")[0] for p in layout.structure[index].params}
    loud = any(within_leaf(name, leaf) == leaf for name in within - quiet)
    return quiet if loud else quiet | {leaf}


def within_leaf(module: str, leaf: str) -> str:
    """The module that gathers this one's weights: itself, or the leaf around it."""
    before, path = (AGAIN, module[len(AGAIN) :]) if module.startswith(AGAIN) else ("", module)
    return before + leaf if leaf and path.startswith(f"{leaf}.") else module


def _table(layout: Layout) -> tuple[int, ...]:
    """The number of the head's matrix: the largest weight of the last segment."""
    numbers: dict[Key, int] = {piece.key: n for n, piece in enumerate(layout.pieces)}
    params = layout.structure[-1].params
    if not params:
        return ()
    largest = max(params, key=lambda param: param.numel)
    return (numbers[-1, -1, largest.name],)


def _without(openings: list[Opening], table: tuple[int, ...]) -> list[Opening]:
    return [
        (name, tuple(w for w in weights if w not in table), opens)
        for name, weights, opens in openings
    ]


def _sizes(layout: Layout) -> Sizes:
    """Elements below every module of every segment, where there is a leaf that asks for them."""
    if not any(link.leaf for link in layout.structure):
        return ()
    found = []
    for link in layout.structure:
        below: dict[str, int] = {}
        for param in link.params:
            path = within_leaf(param.name.rpartition(".")[0], link.leaf).split(".")
            for end in range(len(path) + 1):
                name = ".".join(path[:end])
                below[name] = below.get(name, 0) + param.numel
        found.append((link.leaf, below))
    return tuple(found)


def _calls(
    direction: str,
    where: tuple[int, int],
    openings: list[Opening],
    sizes: Sizes,
    before: str = "",
) -> Iterator[Call]:
    """A module without weights belongs to the time of the one with weights before it."""
    leaf, below = sizes[where[0]] if sizes else ("", {})
    current = next((name for name, weights, opens in openings if opens and weights), "")
    for name, weights, opens in openings:
        if opens and weights:
            current = name
        yield Call(
            weights=weights,
            where=(direction, *where, before + current),
            opens=opens,
            below=below.get(name, 0),
            leaf=bool(leaf) and name == leaf,
        )


def _segments(layout: Layout) -> Iterator[tuple[tuple[int, int], list[Opening]]]:
    numbers: dict[Key, int] = {piece.key: n for n, piece in enumerate(layout.pieces)}
    for index, link in enumerate(layout.structure):
        for layer in range(link.count):
            modules: dict[str, list[int]] = {"": []}
            for param in link.params:
                key = (index, layer, param.name) if link.layered else (-1, -1, param.name)
                if link.repeats:
                    key = (_owner(layout, index), 0, param.name)
                module = within_leaf(param.name.rpartition(".")[0], link.leaf)
                if key in numbers:
                    modules.setdefault(module, []).append(numbers[key])
            yield (index, layer), list(_openings(modules))


def _owner(layout: Layout, index: int) -> int:
    """The later segment whose weights these repetitions run with."""
    later = range(index, len(layout.structure))
    return next(n for n in later if not layout.structure[n].repeats)


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
            done = stack.pop()
            yield done, tuple(modules.get(done, ())), False
        for name in path:
            if name not in stack:
                first = name not in opened
                opened.append(name)
                stack.append(name)
                yield name, (tuple(modules.get(name, ())) if first else ()), True
    while stack:
        done = stack.pop()
        yield done, tuple(modules.get(done, ())), False
