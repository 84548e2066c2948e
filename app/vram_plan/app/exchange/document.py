"""A JSON or YAML file with the line of each key.

PyYAML's nodes carry their marks; JSON is read by the standard library and its lines are those of
the same text read as YAML, of which it is nearly a part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST_FILE_BYTES = 2**20
DEEPEST_LINES = 6
"""Levels of keys whose lines are kept."""

Path_ = tuple[str, ...]
"""Keys from the top of a file to a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a file holds.

    Attributes:
        name: the path as given.
        values: its object.
        lines: keys from the top → line, counted from 1.
    """

    name: str
    values: dict[str, Any]
    lines: dict[Path_, int]

    def line(self, path: Path_) -> int:
        """The line of a key; that of the nearest one above it where it has none."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def wrong(self, path: Path_, problem: str) -> ValueError:
        """The error for a key that cannot be what it says."""
        return ValueError(f"{self.name}:{self.line(path)}: {'.'.join(path)} {problem}")


def load(name: str) -> Document:
    """Read a file.

    Raises:
        ValueError: one line that names the file, the line and what is wrong.
    """
    return parsed(name, _text(name))


def parsed(name: str, text: str) -> Document:
    """Read a text as if it were a file's.

    Raises:
        ValueError: as ``load``.
    """
    try:
        if name.lower().endswith(".json") or text.lstrip().startswith("{"):
            return _json(name, text)
        return _yaml(name, text)
    except RecursionError:
        raise ValueError(f"{name}:1: nested too deeply for a configuration") from None


def _text(name: str) -> str:
    path = Path(name)
    try:
        if path.is_dir():
            raise ValueError(f"{name}: a folder; name the files in it")
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise ValueError(f"{name}: {size:,} bytes are too many for a configuration")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name}:1: not a text file; give JSON or YAML") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None


def _json(name: str, text: str) -> Document:
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}:{error.lineno}: not valid JSON: {error.msg}") from None
    except _TwiceError as error:
        raise ValueError(f"{name}: the key {error.args[0]!r} is there twice") from None
    try:
        # YAML forbids the tabs that may indent JSON
        _, lines = _composed(name, text.replace("\t", " "))
    except ValueError:
        lines = {}
    return Document(name=name, values=_object(name, values), lines=lines)


class _TwiceError(Exception):
    """A key that an object has twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in names if names.count(key) > 1))
    return found


def _yaml(name: str, text: str) -> Document:
    values, lines = _composed(name, text)
    return Document(name=name, values=_object(name, values), lines=lines)


def _composed(name: str, text: str) -> tuple[Any, dict[Path_, int]]:
    import yaml  # imported when a file is read, so that a plan without one starts as fast

    # libyaml's, where PyYAML was built with it, is ten times as fast
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        lines = dict(_lines(name, node, ()))
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{name}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name}:1: not valid YAML: {str(error).splitlines()[0]}") from None
    finally:
        loader.dispose()


def _lines(name: str, node: Any, path: Path_) -> Iterator[tuple[Path_, int]]:
    """Lines of the keys below a node; refuses a key that is there twice."""
    import yaml

    if not isinstance(node, yaml.MappingNode) or len(path) >= DEEPEST_LINES:
        return
    seen = set()
    for key, value in node.value:
        word, line = str(key.value), key.start_mark.line + 1
        if word in seen and word != "<<":
            raise ValueError(f"{name}:{line}: the key {word!r} is there twice")
        seen.add(word)
        yield (*path, word), line
        yield from _lines(name, value, (*path, word))


def _object(name: str, values: Any) -> dict[str, Any]:
    if values is None:
        raise ValueError(f"{name}:1: empty; give a configuration")
    if not isinstance(values, dict):
        raise ValueError(f"{name}:1: not a configuration: keys with values are expected")
    return {str(key): value for key, value in values.items()}
