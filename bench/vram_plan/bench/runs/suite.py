"""Suites: TOML files that name runs as a matrix over any option of the plan.

::

    [run]
    device = "cpu"
    steps = 5
    repeats = 1

    [[cell]]
    model = "qwen2.5-0.5b"
    layers = 4
    method = ["full", "lora"]          # every list is an axis of the matrix
    checkpointing = ["none", "full"]
    seq_len = 256
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vram_plan.bench.runs.job import Job
from vram_plan.estimator.config import TrainConfig
from vram_plan.profiles.names import suggest

__all__ = ["SHIPPED", "find_suite", "read_suite", "shipped"]

SHIPPED = Path(__file__).parent / "suites"
_RUN_KEYS = ("device", "steps", "warmup_steps", "repeats", "seed")
_OF_A_CELL = ("layers", "ranks", "loop", "data", "padding", "tokenizer", "weights")
_FILES = ("data", "tokenizer")
_NOT_OPTIONS = frozenset({"zero_sizes", "assumptions", "node", "stack"})
_OPTIONS = tuple(f.name for f in fields(TrainConfig) if f.name not in _NOT_OPTIONS)


def find_suite(name: str) -> Path:
    """A file, or the name of a shipped suite.

    Raises:
        ValueError: if there is neither.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if path.is_file():
            return path
        raise ValueError(f"suite {name}: there is no such file")
    known = SHIPPED / f"{name}.toml"
    if known.exists():
        return known
    names = shipped()
    raise ValueError(f"unknown suite {name!r}{suggest(name, names)}; shipped: {', '.join(names)}")


def shipped() -> list[str]:
    """Names of the suites that come with the program."""
    return sorted(one.stem for one in SHIPPED.glob("*.toml"))


def read_suite(path: Path, most: int | None = None) -> tuple[Job, ...]:
    """The runs of a suite.

    Args:
        path: the file.
        most: runs that are too many are refused before they are made; None takes any number.

    Raises:
        ValueError: one line that names file, line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"suite {path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"suite {path}: {error}") from None
    where = _Where(path, text)
    where.only(document, ("run", "cell"), "the suite")
    run = document.get("run", {})
    if not isinstance(run, dict):
        raise where.error("run", "must be a table: [run]")
    where.only(run, _RUN_KEYS, "[run]")
    cells = document.get("cell", [])
    if not isinstance(cells, list) or not cells:
        raise where.error("cell", "the suite has no [[cell]]: nothing to run")
    matrices = [_axes(cell, where) for cell in cells]
    if most is not None:
        _refuse_many(matrices, run, most, where)
    jobs = tuple(job for axes in matrices for job in _cell(axes, dict(run), where))
    if not jobs:
        raise where.error("cell", "the matrix is empty")
    return jobs


class _Where:
    """Names the line of a key."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.lines = path, text.splitlines()

    def error(self, key: str, said: str) -> ValueError:
        """An error at the first line that sets ``key``."""
        for number, line in enumerate(self.lines, 1):
            head = line.split("=")[0].strip().strip("[]\"' ")
            if head == key:
                return ValueError(f"suite {self.path}, line {number}: {key}: {said}")
        return ValueError(f"suite {self.path}: {key}: {said}")

    def beside(self, name: str) -> str:
        """A file that a suite names is looked for beside the suite first."""
        path = self.path.parent / name
        return str(path) if path.exists() else name

    def only(self, table: dict[str, Any], known: tuple[str, ...], place: str) -> None:
        """Refuse keys that nothing reads."""
        for key in table:
            if key not in known:
                raise self.error(key, f"unknown key in {place}{suggest(key, known)}")


Axes = dict[str, list[Any]]


def _axes(cell: Any, where: _Where) -> Axes:
    """The values of every key of a cell."""
    if not isinstance(cell, dict):
        raise where.error("cell", "must be a table: [[cell]]")
    where.only(cell, ("model", *_OF_A_CELL, *_OPTIONS), "[[cell]]")
    if "model" not in cell:
        raise where.error("cell", "every [[cell]] needs a model")
    return {key: _values(key, value, where) for key, value in cell.items()}


def _refuse_many(matrices: Sequence[Axes], run: dict[str, Any], most: int, where: _Where) -> None:
    """Count before anything is made; the longest axis is named."""
    repeats = _repeats(run, where)
    count = repeats * sum(math.prod(len(values) for values in axes.values()) for axes in matrices)
    if count > most:
        longest = {key: len(values) for axes in matrices for key, values in axes.items()}
        key = max(longest, key=lambda name: longest[name])
        raise where.error(key, f"{count:,} runs in all: add --yes if that is meant")


def _repeats(run: dict[str, Any], where: _Where) -> int:
    repeats = run.get("repeats", 1)
    if not isinstance(repeats, int) or repeats < 1:
        raise where.error("repeats", f"must be a whole number of at least 1: {repeats!r}")
    return repeats


def _cell(axes: Axes, run: dict[str, Any], where: _Where) -> Iterator[Job]:
    repeats = _repeats(run, where)
    run.pop("repeats", None)
    for chosen in itertools.product(*axes.values()):
        for repeat in range(repeats):
            yield _job(dict(zip(axes, chosen, strict=True)), run, repeat, where)


def _values(key: str, given: Any, where: _Where) -> list[Any]:
    """The values of one axis."""
    values = given if isinstance(given, list) else [given]
    if not values:
        raise where.error(key, "an empty list makes an empty matrix")
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise where.error(key, f"{value!r} is no text, number or truth value")
    return values


def _job(options: dict[str, Any], run: dict[str, Any], repeat: int, where: _Where) -> Job:
    model = str(options.pop("model"))
    own = {name: options.pop(name) for name in _OF_A_CELL if name in options}
    for name in _FILES:
        own |= {name: where.beside(str(own[name]))} if name in own else {}
    try:
        return Job(model=model, options=options, repeat=repeat, **own, **run)
    except (ValueError, TypeError) as error:
        raise where.error(str(error).split(" ", maxsplit=1)[0], str(error)) from None
