"""The library versions of a row, and the training loop that ran it."""

from __future__ import annotations

from functools import lru_cache

from vram_plan.profiles.measured_row import Row
from vram_plan.profiles.stack import Stack, parse_stack
from vram_plan.reports.validate.source_facts import REQUIRED

_PLUGINS = "framework configuration accelerated-peft"
"""Notes of runs whose adapters came from fms-acceleration's plugins instead of TRL."""


def stack_of_row(row: Row) -> Stack:
    """Versions as stated; libraries and loops that change no memory are left out."""
    parts = [part for part in (row.stack or "").split(";") if part]
    named = {part.partition("=")[0] for part in parts}
    required = REQUIRED.get((row.source or "").partition(":")[2], "")
    parts += [one for one in required.split(";") if one and one.partition("=")[0] not in named]
    loop = "fms-acceleration" if _PLUGINS in (row.notes or "") else row.trainer
    if loop is not None:
        parts.append(f"loop={loop}")
    return _parsed(";".join(part for part in parts if _is_known(part)))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Stack:
    return parse_stack(text)


@lru_cache(maxsize=1024)
def _is_known(part: str) -> bool:
    try:
        parse_stack(part)
    except ValueError:
        return False
    return True
