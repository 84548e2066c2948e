"""A trace's events under the plan's words for the instants of a step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from vram_plan.bench.measurement import Instant
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    CLIPPING,
    EMBEDDING_BACKWARD,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    OPTIMIZER_STEP,
    TRAINING,
)

__all__ = ["INNER_LAYERS", "in_order", "instants_of", "labels"]

BACKWARD = "backward"
INNER_LAYERS = "backward_inner_layers"
"""What the plan's two ends of the stack bracket: the bytes of the layers between are linear."""

_LAYER = re.compile(r"^(.*?\.\d+)(?=\.|$)")
_ORDER = (*TRAINING[:2], BACKWARD, *TRAINING[2:4], INNER_LAYERS, *TRAINING[4:])
_PHASES = {"start": FORWARD, "clip": CLIPPING, "step": OPTIMIZER_STEP, "zero_grad": OPTIMIZER_STEP}


class Block(Protocol):
    """A tensor's memory."""

    @property
    def component(self) -> str:
        """The plan's word for it."""

    @property
    def bytes(self) -> int:
        """Its size."""


class Event(Protocol):
    """An allocation (positive ``delta``) or a free."""

    @property
    def block(self) -> Block:
        """What is made or freed."""

    @property
    def delta(self) -> int:
        """Bytes more."""

    @property
    def live(self) -> int:
        """Bytes alive after it."""

    @property
    def phase(self) -> str:
        """The part of the step."""

    @property
    def where(self) -> str:
        """The module at work."""


def labels(events: Sequence[Event]) -> list[str]:
    """The plan's instant of every event.

    The plan's head begins with the final norm, behind the last layer. It tells four instants of
    the backward pass apart: loss and head, the last layer, the first one, and the embedding. They
    follow each other, so the first layer met is the last one, and whatever comes after the layers
    is the embedding's. Where one module serves for every layer (ALBERT) they cannot be told apart.
    """
    found: list[str] = []
    for start, stop in _runs(events):
        phase = events[start].phase
        places = [event.where for event in events[start:stop]]
        if phase == "backward":
            found += _backward(places)
        elif phase == FORWARD:
            found += _forward(places)
        else:
            found += [_PHASES.get(phase, phase)] * (stop - start)
    return found


def _runs(events: Sequence[Event]) -> Iterable[tuple[int, int]]:
    start = 0
    for index in range(1, len(events) + 1):
        if index == len(events) or events[index].phase != events[start].phase:
            yield start, index
            start = index


def _forward(places: list[str]) -> list[str]:
    if not any(places):
        return [FORWARD] * len(places)
    inside = [index for index, place in enumerate(places) if _layer(place)]
    end = inside[-1] + 1 if inside else len(places)
    return [FORWARD] * end + [LOSS] * (len(places) - end)


def _backward(places: list[str]) -> list[str]:
    layers = [_layer(place) for place in places]
    inside = [index for index, layer in enumerate(layers) if layer]
    if not any(places):
        return [BACKWARD] * len(places)  # a device that knows no modules
    if not inside:
        return [LOSS_BACKWARD] * len(places)
    last, first = layers[inside[0]], layers[inside[-1]]
    ends = {last: BACKWARD_LAST, first: BACKWARD_FIRST} if last != first else {}
    found: list[str] = []
    current = LOSS_BACKWARD
    for index, layer in enumerate(layers):
        if layer:
            current = ends.get(layer, INNER_LAYERS)
        elif "embed" in places[index] or (index > inside[-1] and places[index]):
            current = EMBEDDING_BACKWARD
        found.append(current)
    return found


def _layer(place: str) -> str:
    match = _LAYER.match(place)
    return match[1] if match else ""


def instants_of(events: Sequence[Event], start_blocks: Iterable[Block]) -> tuple[Instant, ...]:
    """The fullest moment of every instant, with its components where they are known."""
    alive: dict[str, int] = {}
    for block in start_blocks:
        alive[block.component] = alive.get(block.component, 0) + block.bytes
    best: dict[str, tuple[int, dict[str, int]]] = {}
    for event, label in zip(events, labels(events), strict=True):
        if event.delta:
            name = event.block.component
            alive[name] = alive.get(name, 0) + event.delta
        if label not in best or event.live > best[label][0]:
            best[label] = (event.live, dict(alive))
    return in_order(
        Instant(name=name, bytes=total, components=_told(parts))
        for name, (total, parts) in best.items()
    )


def in_order(instants: Iterable[Instant]) -> tuple[Instant, ...]:
    """In the order of the step."""
    order = {name: place for place, name in enumerate(_ORDER)}
    return tuple(sorted(instants, key=lambda instant: order.get(instant.name, len(order))))


def _told(parts: dict[str, int]) -> dict[str, int] | None:
    """Bytes by component; None where a device does not tell what its memory is for."""
    return None if parts.get("") else {name: size for name, size in parts.items() if size}
