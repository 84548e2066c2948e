"""A deep model's timeline from a shallow trace: the third of four layers is repeated.

Equal layers make equal requests, so a model of more layers does what the traced one does with
further copies of an inner layer behind it: going forward after it, going back before it, and in the
lists of the optimizer's step beside it. A copy's storages are its own; where the layer reads what
its neighbour made, the copy reads what its neighbour's copy made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from vram_plan.bench.allocator.timeline import whole_timeline
from vram_plan.estimator.allocator import AllocatorSettings, Change, Replay, replay

if TYPE_CHECKING:
    from vram_plan.bench.trace import Extended, TraceConfig
    from vram_plan.bench.trace.timeline import Block, Event, Trace

__all__ = ["deep_changes", "replay_deep"]

TRACED_LAYERS = 4
BELOW, COPIED, ABOVE = 1, 2, 3
_ORDERED = frozenset({"forward", "loss", "backward"})
_LAYER = re.compile(r"^(?:.*?\.)?(\d+)(?=\.|$)")
_TOLERANCE = 1e-3
_WHY = "trace the model as it is"


def deep_changes(trace: Trace, layers: int, peak_bytes: int | None = None) -> list[Change]:
    """The whole run of a model with ``layers`` layers.

    Args:
        trace: of the same model with four layers, taken with ``TraceConfig(history=True)``.
        layers: four or more.
        peak_bytes: what is known to be allocated at most (``Extended.peak_bytes``); the result is
            held against it.

    Raises:
        ValueError: the layers differ, so the trace cannot be extended.
    """
    if layers < TRACED_LAYERS:
        raise ValueError(f"{layers} layers are fewer than the {TRACED_LAYERS} traced: {_WHY}")
    changes = list(_Extension(trace, layers - TRACED_LAYERS).changes())
    found = max(accumulate(delta for _, delta in changes))
    if peak_bytes is not None and abs(found - peak_bytes) > _TOLERANCE * peak_bytes:
        raise ValueError(
            f"extended to {layers} layers the trace allocates {found:,} bytes, but the model "
            f"{peak_bytes:,}: {_WHY}"
        )
    return changes


def replay_deep(
    config: TraceConfig,
    seen: Extended,
    settings: AllocatorSettings | None = None,
    limit_bytes: int | None = None,
) -> Replay:
    """Replay a deep model's run: one more trace of four layers, extended to all of them.

    Args:
        config: the whole model's.
        seen: what ``trace_deep`` found of it.
        settings: the allocator's; PyTorch's defaults when None.
        limit_bytes: what the device can hand out; None: all that is asked for.

    Raises:
        ValueError: the layers are of several kinds, or an engine allocates from several streams.
    """
    from vram_plan.bench.trace import trace_step
    from vram_plan.bench.trace.depth import cut_layers, layer_kinds, of_depth

    if config.engine not in ("torch", "ddp"):
        raise ValueError(f"engine {config.engine} allocates from several streams")
    cut = cut_layers(layer_kinds(config))
    if cut is None or cut.long != TRACED_LAYERS:
        raise ValueError(f"the layers are of several kinds: {_WHY}")
    shape = of_depth(config.config, cut.kept(TRACED_LAYERS))
    trace = trace_step(replace(config, config=shape, history=True))
    changes = deep_changes(trace, seen.layers, seen.peak_bytes)
    return replay(changes, settings, limit_bytes)


@dataclass(slots=True, kw_only=True)
class _Group:
    """Events of one layer in a row; ``layer`` is None outside the layers."""

    layer: int | None
    events: list[Event]
    made: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.made = [e.block.number for e in self.events if e.delta > 0 and e.block.bytes]


class _Extension:
    """Numbers the storages of the copies."""

    def __init__(self, trace: Trace, copies: int) -> None:
        events = whole_timeline(trace)
        self.copies = copies
        self.groups = list(_groups(events))
        self.origin: dict[int, int] = {}
        self.like: dict[int, int] = {}
        self.numbers: dict[tuple[int, int], int] = {}
        self.next = 1 + max(event.block.number for event in events)
        depth = {g.layer for g in self.groups if g.layer is not None}
        if depth != set(range(TRACED_LAYERS)):
            raise ValueError(f"the trace has {len(depth)} layers, not {TRACED_LAYERS}: {_WHY}")
        self._find_likes()

    def changes(self) -> Iterator[Change]:
        """Every change, copies included."""
        for i, group in enumerate(self.groups):
            if group.layer != COPIED:
                yield from self._original(group)
                continue
            upwards = self._previous_layer(i) == BELOW
            order = range(self.copies + 1) if upwards else range(self.copies, -1, -1)
            for copy in order:
                for event in group.events:
                    if event.delta:
                        yield self._number(event.block, copy), event.delta

    def _original(self, group: _Group) -> Iterator[Change]:
        """A group that is not copied; what ends here may end for every copy."""
        for event in group.events:
            number = event.block.number
            if not event.delta:
                continue
            copied = self.origin.get(number) == COPIED
            if copied and group.layer == ABOVE:
                yield self._version(number, self.copies), event.delta
            elif copied and group.layer is None:
                for copy in range(self.copies + 1):
                    yield self._version(number, copy), event.delta
            else:
                yield number, event.delta

    def _number(self, block: Block, copy: int) -> int:
        """The storage that copy number ``copy`` means by ``block``; 0 is the layer itself."""
        number, origin = block.number, self.origin.get(block.number)
        if origin == COPIED:
            return self._version(number, copy)
        if origin == BELOW and copy > 0:
            return self._version(self._alike(number), copy - 1)
        if origin == ABOVE and copy < self.copies:
            return self._version(self._alike(number), copy + 1)
        return number

    def _alike(self, number: int) -> int:
        if number not in self.like:
            raise ValueError(f"a layer's neighbours make different tensors: {_WHY}")
        return self.like[number]

    def _version(self, number: int, copy: int) -> int:
        if copy == 0:
            return number
        key = (number, copy)
        if key not in self.numbers:
            self.numbers[key] = self.next
            self.next += 1
        return self.numbers[key]

    def _previous_layer(self, i: int) -> int | None:
        return next((g.layer for g in reversed(self.groups[:i]) if g.layer is not None), None)

    def _find_likes(self) -> None:
        """Which storages of the neighbours are like which of the copied layer."""
        for group in self.groups:
            for number in group.made:
                if group.layer is not None:
                    self.origin[number] = group.layer
        inner = [group for group in self.groups if group.layer is not None]
        for before, group, after in zip(inner, inner[1:], inner[2:], strict=False):
            if group.layer != COPIED:
                continue
            for neighbour in (before, after):
                if neighbour.layer in (BELOW, ABOVE):
                    self.like.update(zip(neighbour.made, group.made, strict=False))


def _groups(events: list[Event]) -> Iterator[_Group]:
    """Events by the layer they belong to; what lies between two of one layer belongs to it."""
    tagged = list(zip(_tags(events), events, strict=True))
    runs = [(tag, [e for _, e in run]) for tag, run in groupby(tagged, key=lambda pair: pair[0])]
    merged: list[tuple[int | None, list[Event]]] = []
    for i, (tag, run) in enumerate(runs):
        following = runs[i + 1][0] if i + 1 < len(runs) else None
        inside = tag is None and merged and merged[-1][0] == following is not None
        starts = any(event.delta == 0 for event in run)
        if merged and not starts and (inside or merged[-1][0] == tag):
            merged[-1][1].extend(run)
        else:
            merged.append((tag, run))
    for tag, run in merged:
        yield _Group(layer=tag, events=run)


def _tags(events: list[Event]) -> Iterator[int | None]:
    """The layer of every event.

    Going forward and back it is the one that runs; in the lists of loading, clipping and stepping
    it is that of the tensor's weight.
    """
    owners = _owners(events)
    for event in events:
        if event.delta == 0:
            yield None
        elif event.phase in _ORDERED:
            yield _layer(event.where)
        else:
            yield owners.get(event.block.number, _layer(event.block.module))


def _owners(events: list[Event]) -> dict[int, int]:
    """Layers of the tensors that clipping and the optimizer make.

    Scratch whose size follows the number of tensors (a few kilobytes) stays as it is.
    Either they come in lists of one, two … for every weight (foreach), or each weight's come
    together; then the layers are the four equal stretches.
    """
    weights = [_layer(e.block.module) for e in events if e.phase == "zero_grad" and e.delta < 0]
    count = len(weights) // max(1, sum(e.phase == "zero_grad" and not e.delta for e in events))
    found: dict[int, int] = {}
    for phase, instance in groupby(events, key=lambda event: event.phase):
        if phase not in ("clip", "step"):
            continue
        rest: list[Event] = []
        made = (event for event in instance if event.delta > 0)
        for _, run in groupby(made, key=lambda event: event.block.op):
            alike = list(run)
            if not count or len(alike) % count:
                rest += alike
                continue
            for i, event in enumerate(alike):
                layer = weights[i // (len(alike) // count)]
                if layer is not None:
                    found[event.block.number] = layer
        found |= _stretches(rest)
    return found


def _stretches(made: list[Event]) -> dict[int, int]:
    """The longest stretch that comes four times in a row; nothing where there is none."""
    keys = [(event.delta, event.block.op) for event in made]
    for period in range(len(keys) // TRACED_LAYERS, 0, -1):
        equal = 0
        for i in range(len(keys) - period):
            equal = equal + 1 if keys[i] == keys[i + period] else 0
            if equal == period * (TRACED_LAYERS - 1):
                first = i + 1 - equal
                stretch = made[first : first + TRACED_LAYERS * period]
                return {e.block.number: k // period for k, e in enumerate(stretch)}
    return {}


def _layer(path: str) -> int | None:
    match = _LAYER.match(path)
    return None if match is None else int(match[1])
