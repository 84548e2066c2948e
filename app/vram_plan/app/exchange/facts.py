"""What files say, key by key, with the place where they say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Weight(IntEnum):
    """Whose word counts where two files speak of the same option."""

    IMPLIED = 0
    """What the library does where its file is silent."""
    OFF = 1
    """A switch that one file leaves off and another may turn on: FSDP's checkpointing."""
    STATED = 2
    OVERRIDING = 3
    """What the library takes whatever another file states: DeepSpeed's ``optimizer`` section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that one file says.

    Attributes:
        value: in the words of the plan's options.
        file: the path as given.
        line: counted from 1.
        key: as the file spells it.
        weight: whose word counts.
    """

    value: Any
    file: str
    line: int
    key: str
    weight: Weight = Weight.STATED

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one file says.

    Attributes:
        form: the format, as a person knows it.
        file: the path as given.
        facts: option → fact; beside the plan's options the words of ``settle``.
        warnings: sentences about keys that change memory and are not planned.
        harmless: keys that change no memory.
        unknown: keys that the format does not have, as far as is known.
        references: other files that this one names: DeepSpeed's.
    """

    form: str
    file: str
    facts: Mapping[str, Fact]
    warnings: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    references: tuple[Fact, ...] = ()


class CannotSayError(ValueError):
    """A format has no word for an option without which the run would be another one."""
