"""The largest micro-batch in closed form: bytes of every instant on a line through one and two.

Each instant of the step is the fullest of moments whose bytes are affine in the micro-batch, so it
is convex in it and the line through the first two never lies above it further on: what the lines
leave room for is the answer or a little more, and what is taken is checked by its own ledger.

Affine but for rounding: a moment is a sum of at most n tensors, each a b + c bytes (a, c not
negative) rounded up by less than r = 512. So between b = 1 and b = k the fullest instant grows by
s bytes a sequence, and with k + 1 (`at_least_with_one_more`)

* it holds at least s - 2 n r bytes more than with k: it is convex but for n r above and below;
* whatever instant is the fullest then grows by at least s - 3 n r a sequence, as it was no fuller
  with k; what is made within the step is all of it that grows, hence at least k + 1 times that.
"""

from __future__ import annotations

from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import OUTSIDE_THE_STEP
from vram_plan.estimator.memory import Memory
from vram_plan.estimator.overhead import MADE_WITHIN_THE_STEP, slack_bytes
from vram_plan.estimator.search.room import Need, room
from vram_plan.estimator.tensors import ROUNDING_BYTES

_MADE = MADE_WITHIN_THE_STEP[0]
_OUTSIDE = 8
"""Segments beside the blocks: embeddings, norms, heads, of an encoder too."""
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


def along(start: Reading, low: Reading, high: Reading, more: int, steps: int = 1) -> Reading:
    """So many sequences from a reading, each taking what those from ``low`` to ``high`` take.

    Args:
        start: where to begin.
        low: with some micro-batch.
        high: with ``steps`` sequences more.
        more: sequences beyond ``start``.
        steps: between the two.
    """
    instants = [
        Instant(
            s.total + more * (b.total - a.total) // steps,
            s.made + more * (b.made - a.made) // steps,
            s.inside,
        )
        for s, a, b in zip(start.instants, low.instants, high.instants, strict=True)
    ]
    host = start.host + more * (high.host - low.host) // steps
    nvme = start.nvme + more * (high.nvme - low.nvme) // steps
    return Reading(tuple(instants), start.overhead, host, nvme)


TENSORS = 256
"""At most so many tensors of a segment are alive at once (a test counts them)."""


def at_least_with_one_more(config: TrainConfig, one: Reading, many: Reading, count: int) -> Need:
    """What one sequence more than ``count`` (two or more) needs at least.

    Args:
        config: a loss that is not cut into chunks.
        one: with one sequence.
        many: with ``count``.
        count: sequences.
    """
    place = max(
        (i for i, instant in enumerate(many.instants) if instant.inside),
        key=lambda i: many.instants[i].total,
    )
    total = many.instants[place].total
    first = one.instants if config.pp > 1 else (one.instants[place],)  # of another stage perhaps
    grown = (total - max(instant.total for instant in first)) // (count - 1)
    tensors = TENSORS * (config.model.num_blocks + _OUTSIDE)
    more = max(0, grown - 3 * tensors * ROUNDING_BYTES)
    largest = max(total + more, *(instant.total for instant in many.instants))
    slack = slack_bytes(_NOTHING | {_MADE: (count + 1) * more})
    return Need(largest + many.overhead + slack, many.host, many.nvme)


def largest_on_lines(config: TrainConfig, one: Reading, two: Reading, most: int) -> int:
    """The largest micro-batch for which the lines leave room; at least 1."""

    def fits(micro_batch: int) -> bool:
        return room(config, along(one, one, two, micro_batch - 1).need) >= 0

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
