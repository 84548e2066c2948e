"""Typed reading of a `config.json`: every refusal names the file, the field and the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["Fields", "show"]

_SHOWN = 60  # characters of a wrong value worth printing


class Fields:
    """The fields of one configuration, read by type.

    Transformers accepts two names for some fields (GPT-2's ``n_embd`` is also ``hidden_size``);
    getters take both and use the first that is present. JSON's ``null`` counts as absent unless a
    getter says otherwise, as the configuration classes fill ``None`` with their own default.
    """

    def __init__(self, raw: Mapping[str, object], label: str) -> None:
        self._raw = raw
        self._label = label

    def error(self, field: str, problem: str) -> ValueError:
        """The error to raise about a field."""
        return ValueError(
            f"{self._label}: {field} {problem}; correct the config or choose a model from "
            "`vram-plan models`"
        )

    def has(self, *names: str) -> bool:
        """Whether one of the names is present, even as null."""
        return any(name in self._raw for name in names)

    def _find(self, names: tuple[str, ...]) -> tuple[str, object]:
        for name in names:
            if self._raw.get(name) is not None:
                return name, self._raw[name]
        return names[0], None

    def whole(self, *names: str, default: int | None = None) -> int:
        """A whole number of at least 0; required when there is no default."""
        name, value = self._find(names)
        if value is None:
            if default is None:
                raise self.error(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be a whole number, got {show(value)}")
        if value < 0:
            raise self.error(name, f"must not be negative, got {show(value)}")
        return value

    def size(self, *names: str, default: int | None = None) -> int:
        """A whole number of at least 1; required when there is no default."""
        value = self.whole(*names, default=default)
        if value == 0 and default != 0:
            raise self.error(self._find(names)[0], "must be at least 1, got 0")
        return value

    def number(self, *names: str, default: float) -> float:
        """A finite number."""
        name, value = self._find(names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, got {show(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(name, f"must be a finite number, got {show(value)}")
        return number

    def share(self, *names: str, default: float = 0.0) -> float:
        """A number between 0 and 1, as a probability of dropout."""
        value = self.number(*names, default=default)
        if not 0 <= value <= 1:
            raise self.error(self._find(names)[0], f"must be between 0 and 1, got {show(value)}")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        name, value = self._find(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, got {show(value)}")
        return value

    def text(self, *names: str, default: str) -> str:
        """A string."""
        name, value = self._find(names)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, got {show(value)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        value = self._raw.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise self.error(name, f"must be a list of strings, got {show(value)}")
        return tuple(value)

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when absent."""
        value = self._raw.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(type(one) is int for one in value):
            raise self.error(name, f"must be a list of whole numbers, got {show(value)}")
        return tuple(value)

    def value(self, name: str) -> object:
        """The raw value, for fields with a grammar of their own; None when absent."""
        return self._raw.get(name)

    def part(self, name: str) -> Fields:
        """A nested table; empty when absent."""
        value = self._raw.get(name)
        if value is None:
            return Fields({}, f"{self._label}: {name}")
        if not isinstance(value, Mapping):
            raise self.error(name, f"must be an object, got {show(value)}")
        return Fields(value, f"{self._label}: {name}")

    def divided(self, total: int, parts: int, what: str) -> int:
        """``total // parts``, refused unless it comes out even; ``what`` names both fields."""
        if total % parts:
            raise self.error(what, f"must divide evenly: {total} by {parts}")
        return total // parts


def show(value: object) -> str:
    """A value in an error message: one line, and short whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a bottomless list
        text = f"a {type(value).__name__}"
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
