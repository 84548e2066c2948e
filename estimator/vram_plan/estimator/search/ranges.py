"""What a person types for a range, and the values it stands for.

``8`` is one value, ``1,2,8`` a list, ``1..64`` every whole number, ``1..64:8`` every eighth from
the first, ``1..64:x2`` doubling; ``any`` is every choice an option has, ``auto`` lets the search
pick.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vram_plan.estimator.refusals import option

_RANGE = re.compile(r"(\d+)\.\.(\d+)(?::(x?)(\d+))?")
_MOST_VALUES = 100_000
ALL = frozenset({"any", "auto"})
"""Words for "every value there is"."""


def numbers(name: str, text: str, every: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Whole numbers of a range option, in the order typed, none twice.

    Args:
        name: the option's name with underscores, for the message.
        text: what was typed.
        every: what ``any`` and ``auto`` stand for; empty where they mean nothing.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    found: list[int] = []
    for part in _parts(name, text):
        if part in ALL and every:
            found += every
        elif part.isdecimal() and len(part) < 10:
            found.append(int(part))
        else:
            found += _spread(name, part, auto=bool(every))
    return tuple(dict.fromkeys(found))


def _spread(name: str, part: str, *, auto: bool) -> Iterable[int]:
    match = _RANGE.fullmatch(part)
    if match is None:
        words = ", any or auto" if auto else ""
        raise ValueError(
            f"{option(name)} {part}: choose a number, a list 1,2,4, a range 1..64, 1..64:8 or "
            f"1..64:x2{words}"
        )
    first, last, step = int(match[1]), int(match[2]), int(match[4] or 1)
    if first > last:
        raise ValueError(f"{option(name)} {part}: the range is empty; write {last}..{first}")
    if match[3]:
        return _doubling(name, part, first, last, step)
    if not step or (last - first) // step >= _MOST_VALUES:
        raise ValueError(f"{option(name)} {part}: more than {_MOST_VALUES:,} values; choose a step")
    return range(first, last + 1, step)


def _doubling(name: str, part: str, first: int, last: int, factor: int) -> Iterable[int]:
    if factor < 2 or first < 1:
        raise ValueError(
            f"{option(name)} {part}: choose a first value and a factor such as 1..64:x2"
        )
    values = [first]
    while values[-1] * factor <= last:
        values.append(values[-1] * factor)
    return values


def words(name: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Words of a choice option, in the order typed, none twice; ``any`` is all of them.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    found: list[str] = []
    for part in _parts(name, text):
        if part in ALL:
            found += known
        elif part in known:
            found.append(part)
        else:
            raise ValueError(f"{option(name)} {part}: choose any or from {', '.join(known)}")
    return tuple(dict.fromkeys(found))


def _parts(name: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f"{option(name)} {text!r}: a value is missing; write 1,2,4 or 1..64")
    return parts
