"""The ledger: every tensor of a training step, with the instants in which it lives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

COMPONENTS = (
    "weights",
    "master_weights",
    "gradients",
    "optimizer_states",
    "activations",
    "logits",
    "kv_cache",
    "buffers",
    "temporaries",
)
MODEL_STATES = ("weights", "master_weights", "gradients", "optimizer_states")
Place = Literal["device", "host", "nvme"]

INITIALIZATION, SAVING = "initialization", "saving"
OUTSIDE_THE_STEP = (INITIALIZATION, SAVING)
"""Instants that decide whether a run fits but are not part of the step's peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Bytes that live in some instants of the step.

    Attributes:
        component: one of ``COMPONENTS``.
        name: what it is, in a person's words.
        bytes: on the fullest rank (``place`` device) or for a whole node (host, nvme).
        formula: how the bytes come about, with its numbers put in.
        source: the paper, library file and version, or data sheet it was read from.
        alive: instants in which it lives; empty means all of the step.
        place: ``device``, ``host`` or ``nvme``.
        state: it is part of the textbook sum of model states.
    """

    component: str
    name: str
    bytes: int
    formula: str
    source: str
    alive: frozenset[str] = frozenset()
    place: Place = "device"
    state: bool = False

    def __post_init__(self) -> None:
        assert self.component in COMPONENTS, self.component
        assert self.bytes >= 0, (self.name, self.bytes)

    def lives_in(self, instant: str) -> bool:
        """Whether it lives in ``instant``."""
        if not self.alive:
            return instant not in OUTSIDE_THE_STEP
        return instant in self.alive


class Ledger:
    """Entries and the instants they live in; totals are sums, the peak is their maximum."""

    __slots__ = ("entries", "instants")

    def __init__(self, instants: Iterable[str], entries: Iterable[Entry]) -> None:
        self.instants = tuple(instants)
        self.entries = tuple(entry for entry in entries if entry.bytes)

    def totals(self) -> dict[str, int]:
        """Bytes on the device in every instant."""
        result = dict.fromkeys(self.instants, 0)
        everywhere = 0
        for entry in self.entries:
            if entry.place != "device":
                continue
            if not entry.alive:
                everywhere += entry.bytes
                continue
            for instant in entry.alive:
                if instant in result:
                    result[instant] += entry.bytes
        for instant in result:
            if instant not in OUTSIDE_THE_STEP:
                result[instant] += everywhere
        return result

    def components(self, instant: str) -> dict[str, int]:
        """Bytes on the device by component in ``instant``; they sum to its total."""
        result = dict.fromkeys(COMPONENTS, 0)
        for entry in self.entries:
            if entry.place == "device" and entry.lives_in(instant):
                result[entry.component] += entry.bytes
        return result

    def at(self, instant: str) -> tuple[Entry, ...]:
        """Entries on the device alive in ``instant``, largest first."""
        alive = (e for e in self.entries if e.place == "device" and e.lives_in(instant))
        return tuple(sorted(alive, key=lambda entry: -entry.bytes))

    def elsewhere(self, place: Place) -> int:
        """Bytes held in host memory or on NVMe, per node."""
        return sum(entry.bytes for entry in self.entries if entry.place == place)

    @property
    def model_states(self) -> int:
        """Weights, master weights, gradients and optimizer states resident on the device."""
        return sum(e.bytes for e in self.entries if e.state and e.place == "device")
