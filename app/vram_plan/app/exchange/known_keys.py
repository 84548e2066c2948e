"""The keys of each format that the plan does not read: those that change memory, and the others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

_FILE = os.path.join(os.path.dirname(__file__), "known_keys.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKeys:
    """Keys of one format, nested ones with dots.

    Attributes:
        memory: keys that change memory and are not planned.
        harmless: keys that change no memory of a training step.
    """

    memory: frozenset[str]
    harmless: frozenset[str]


@cache
def known_keys(table: str) -> KnownKeys:
    """The keys of a format, with those of the formats that it contains."""
    import tomllib

    with open(_FILE, "rb") as file:
        tables = tomllib.load(file)
    memory: set[str] = set()
    harmless: set[str] = set()
    waiting = [table]
    while waiting:
        found = tables[waiting.pop()]
        memory |= set(found["memory"])
        harmless |= set(found["harmless"])
        waiting += found.get("contains", [])
    return KnownKeys(memory=frozenset(memory), harmless=frozenset(harmless - memory))
