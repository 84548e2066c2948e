"""Reading keys one by one: types checked, lines kept, what was not read sorted afterwards."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from vram_plan.app.exchange.document import Document, Path_
from vram_plan.app.exchange.facts import Fact, Reading, Weight
from vram_plan.app.exchange.known_keys import KnownKeys, known_keys

_OFF = (None, False, 0, "", "none", "no", "null", "auto", "off", "NO", "NONE", "NO_PREFETCH")
"""Values under which a switch changes nothing."""


class Reader:
    """One file being read.

    Attributes:
        document: the file.
        known: the keys of its format.
    """

    def __init__(self, document: Document, form: str, table: str) -> None:
        self.document = document
        self.known: KnownKeys = known_keys(table)
        self._form = form
        self._facts: dict[str, Fact] = {}
        self._read: set[Path_] = set()
        self._warnings: list[str] = []
        self._references: list[Fact] = []

    def get(self, *path: str) -> Any:
        """The value of a key, None where it is missing; it counts as read."""
        self._read.add(path)
        value: Any = self.document.values
        for word in path:
            if not isinstance(value, Mapping):
                return None
            value = value.get(word)
        return value

    def has(self, *path: str) -> bool:
        """Whether a key is there with a value."""
        return self.get(*path) is not None

    def section(self, *path: str) -> Mapping[str, Any]:
        """An object; empty where it is missing."""
        value = self.get(*path)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(path, "must hold keys", value)
        return value

    def whole(self, *path: str, least: int = 1) -> int | None:
        """A whole number; None where it is missing or "auto"."""
        value = self.get(*path)
        if value is None or value == "auto":
            return None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or value != value or abs(value) > 2**63 or value != int(value):
            raise self.wrong(path, "must be a whole number", value)
        if value < least:
            raise self.wrong(path, f"must be at least {least}", value)
        return int(value)

    def share(self, *path: str) -> float | None:
        """A number between 0 and 1."""
        value = self.get(*path)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise self.wrong(path, "must be between 0 and 1", value)
        return float(value)

    def flag(self, *path: str) -> bool | None:
        """True or false; None where it is missing or "auto"."""
        value = self.get(*path)
        if value is None or value == "auto":
            return None
        word = str(value).lower()
        if word in {"true", "yes", "1"}:
            return True
        if word in {"false", "no", "0"}:
            return False
        raise self.wrong(path, "must be true or false", value)

    def text(self, *path: str) -> str | None:
        """Words."""
        value = self.get(*path)
        if value is None:
            return None
        if isinstance(value, (dict, list)):
            raise self.wrong(path, "must be text", value)
        return str(value)

    def word(self, table: Mapping[str, Any], *path: str) -> Any:
        """What a word stands for; None where it is missing, an error where it is unknown."""
        value = self.text(*path)
        if value is None:
            return None
        if value.lower() not in table:
            raise self.wrong(path, f"must be one of {', '.join(table)}", value)
        return table[value.lower()]

    def names(self, *path: str) -> list[str] | None:
        """A list of names, or names separated by commas."""
        value = self.get(*path)
        if value is None:
            return None
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(path, "must be a list of names", value)
        return list(value)

    def state(self, option: str, value: Any, *path: str, weight: Weight = Weight.STATED) -> None:
        """The file says an option, at a key; None says nothing."""
        if value is None:
            return
        line = self.document.line(path)
        self._facts[option] = Fact(
            value=value, file=self.document.name, line=line, key=".".join(path), weight=weight
        )

    def imply(self, option: str, value: Any, key: str) -> None:
        """The library takes a value for a key that is not there."""
        if option not in self._facts:
            self.state(option, value, f"{key} (missing)", weight=Weight.IMPLIED)

    def refer(self, *path: str) -> None:
        """A key names another file."""
        fact = Fact(
            value=self.text(*path),
            file=self.document.name,
            line=self.document.line(path),
            key=".".join(path),
        )
        self._references.append(fact)

    def warn(self, path: Path_, text: str) -> None:
        """A key changes memory in a way that is not planned."""
        where = f"{self.document.name}:{self.document.line(path)}"
        self._warnings.append(f"{where}: {'.'.join(path)} {text}")

    def wrong(self, path: Path_, expected: str, value: object) -> ValueError:
        """The error for a value that is none."""
        shown = repr(value)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        return self.document.wrong(path, f"{expected}, got {shown}")

    def finish(self) -> Reading:
        """Everything the file said, and its other keys sorted."""
        harmless, unknown = [], []
        for path, value in self._leaves(self.document.values, ()):
            key = ".".join(path)
            if key in self.known.memory:
                if value not in _OFF and value not in ([], {}):
                    self.warn(path, "changes memory and is not planned")
            elif key in self.known.harmless:
                harmless.append(key)
            elif not key.startswith("_"):
                unknown.append(f"{key}{self._near(key)}")
        return Reading(
            form=self._form,
            file=self.document.name,
            facts=self._facts,
            warnings=tuple(self._warnings),
            harmless=tuple(harmless),
            unknown=tuple(unknown),
            references=tuple(self._references),
        )

    def _leaves(self, values: Mapping[str, Any], above: Path_) -> Iterator[tuple[Path_, Any]]:
        """Keys that were not read; sections are opened where a key in them is known."""
        known = [tuple(key.split(".")) for key in self.known.memory | self.known.harmless]
        deep = len(above) + 1
        opened = {path[:deep] for path in (*self._read, *known) if len(path) > deep}
        for key, value in values.items():
            path = (*above, str(key))
            if path in opened and isinstance(value, Mapping):
                yield from self._leaves(value, path)
            elif path not in self._read:
                yield path, value

    def _near(self, key: str) -> str:
        known = {".".join(path) for path in self._read} | self.known.harmless | self.known.memory
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.85)
        return f" ({near[0]}?)" if near else ""
