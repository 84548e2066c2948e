"""The largest micro-batch in closed form: bytes of every instant on a line through one and two.

Each instant of the step is the fullest of moments whose bytes are affine in the micro-batch, so it
is convex in it and the line through the first two never lies above it further on: what the lines
leave room for is the answer or a little more, and what is taken is checked by its own ledger.
"""

from __future__ import annotations

from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import OUTSIDE_THE_STEP
from vram_plan.estimator.memory import Memory
from vram_plan.estimator.overhead import MADE_WITHIN_THE_STEP, slack_bytes
from vram_plan.estimator.search.room import Need, room

_MADE = MADE_WITHIN_THE_STEP[0]
_NOTHING = dict.fromkeys(MADE_WITHIN_THE_STEP, 0)


class Instant(NamedTuple):
    """Bytes in all and bytes made within the step; whether it is part of the step."""

    total: int
    made: int
    inside: bool


class Reading(NamedTuple):
    """A ledger's totals with one micro-batch."""

    instants: tuple[Instant, ...]
    overhead: int
    host: int
    nvme: int

    @property
    def need(self) -> Need:
        """What `memory.Memory` adds up: the first of equal instants is the peak."""
        largest = peak = made = 0
        for total, inner, inside in self.instants:
            largest = max(largest, total)
            if inside and total > peak:
                peak, made = total, inner
        slack = slack_bytes(_NOTHING | {_MADE: made})
        return Need(largest + self.overhead + slack, self.host, self.nvme)


def read(memory: Memory) -> Reading:
    """What a ledger says of every instant."""
    instants = []
    for name, total in memory.instants.items():
        components = memory.ledger.components(name)
        made = sum(components[part] for part in MADE_WITHIN_THE_STEP)
        instants.append(Instant(total, made, name not in OUTSIDE_THE_STEP))
    return Reading(tuple(instants), memory.overhead_bytes, memory.host_bytes, memory.nvme_bytes)


def extrapolate(one: Reading, two: Reading, micro_batch: int) -> Reading:
    """The reading on the line through those of one and two sequences."""
    more = micro_batch - 1
    instants = [
        Instant(a.total + more * (b.total - a.total), a.made + more * (b.made - a.made), a.inside)
        for a, b in zip(one.instants, two.instants, strict=True)
    ]
    host = one.host + more * (two.host - one.host)
    nvme = one.nvme + more * (two.nvme - one.nvme)
    return Reading(tuple(instants), one.overhead, host, nvme)


def largest_on_lines(config: TrainConfig, one: Reading, two: Reading, most: int) -> int:
    """The largest micro-batch for which the lines leave room; at least 1."""

    def fits(micro_batch: int) -> bool:
        return room(config, extrapolate(one, two, micro_batch).need) >= 0

    low = 1
    high = min(most, _without_slack(config, one, two)) + 1
    step = max(1, (high - low) // 8)  # slack takes a few percent: look near the top first
    while high - low > 1:
        middle = max(low + 1, high - step) if step else (low + high) // 2
        if fits(middle):
            low, step = middle, 0
        else:
            high = middle
            step = 0 if high - low < 2 else step
    return low


def _without_slack(config: TrainConfig, one: Reading, two: Reading) -> int:
    """What would fit if nothing were lost to fragmentation."""
    assert config.gpu is not None
    space = config.gpu.usable_bytes - one.overhead
    found = []
    for a, b in zip(one.instants, two.instants, strict=True):
        more = b.total - a.total
        if more > 0:
            found.append(1 + (space - a.total) // more)
    return max(1, min(found, default=2**30))
