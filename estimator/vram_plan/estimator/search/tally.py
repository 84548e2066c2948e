"""What was ruled out, counted by reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from vram_plan.estimator.search.wish import RuledOut
from vram_plan.profiles.gpus import GpuSpec

TOO_DEAR = "dearer than --max-usd-per-hour"
NO_PRICE = "no rental price is known"
REFUSED = "refused: "
NOT_DIVISIBLE = "--global-batch is no multiple of data-parallel ranks × micro-batch"
MISSES = "does not fit"
NO_SPEED = "no step time is modelled"
TOO_LATE = "not done by --deadline"
BEATEN = "cannot beat the plans found (bound)"
NOT_REACHED = "not reached before the search was stopped"
_NUMBER = re.compile(r"(?<![\w-])\d[\d,.]*\d|(?<![\w-])\d")
_REST = re.compile("[:;] ")


class Out(NamedTuple):
    """Why a configuration is out; ``missing`` bytes where bytes are the reason."""

    reason: str
    example: str = ""
    missing: int | None = None


def refusal(message: str, gpu: GpuSpec | None) -> Out:
    """A combination that nothing runs; messages that differ in numbers or GPUs are one reason."""
    said = message if gpu is None else message.replace(gpu.name, "this GPU")
    reason = _REST.split(said, maxsplit=1)[0]
    return Out(REFUSED + _NUMBER.sub("N", reason), message)


@dataclass(slots=True)
class _Count:
    count: int = 0
    example: str = ""
    missing: int | None = None


class Tally:
    """Counts by reason, each with an example and the nearest miss."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}
        self.total = 0

    def add(self, out: Out, count: int = 1) -> None:
        """Note ``count`` configurations that are out for one reason."""
        if not count:
            return
        found = self._counts.setdefault(out.reason, _Count(example=out.example))
        found.count += count
        self.total += count
        if out.missing is not None and (found.missing is None or out.missing < found.missing):
            found.missing, found.example = out.missing, out.example

    def rows(self) -> tuple[RuledOut, ...]:
        """Every reason, most frequent first."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1].count, item[0]))
        return tuple(
            RuledOut(reason=reason, count=one.count, example=one.example, nearest_bytes=one.missing)
            for reason, one in ordered
        )
