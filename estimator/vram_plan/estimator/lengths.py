"""Sequences that differ in length: which ones a replay of the allocator is shown.

A peak is that of the longest sequences, whatever the others are. What the allocator reserves is
not: a sequence that is longer than all before it finds no block large enough, and those that the
earlier ones left stay cached. Shorter ones fit into what is there, so a replay of the records of an
epoch alone reserves what all of its micro-batches do. How many records there are, and by how much
each exceeds the one before, is chance: the median of a few shuffled epochs is taken.

Lengths of natural text are close to log-normal, here with the mean and the deviation that tools
print of a data set's tokens, cut at the limit; a micro-batch is padded to its longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, log1p, sqrt
from random import Random

__all__ = ["FIXED", "Epoch", "parse_lengths", "records"]

FIXED = "fixed"
SEQUENCES = 10_000
"""Sequences of an epoch unless said otherwise."""
_MOST = 10**7


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """The sequences of a data set.

    Attributes:
        mean: of their tokens.
        deviation: standard deviation of their tokens.
        sequences: how many there are.
    """

    mean: float
    deviation: float
    sequences: int = SEQUENCES

    def __post_init__(self) -> None:
        if not (0 < self.mean <= _MOST and 0 < self.deviation <= _MOST):
            raise ValueError("the mean and the deviation of the tokens must be above 0")
        if not 0 < self.sequences <= _MOST:
            raise ValueError(f"the number of sequences must be 1 to {_MOST:,}")


def parse_lengths(text: str) -> Epoch | None:
    """Read ``MEAN,DEVIATION`` or ``MEAN,DEVIATION,SEQUENCES``; None for ``fixed``.

    Raises:
        ValueError: one line that names the option and the way out.
    """
    if text == FIXED:
        return None
    parts = text.split(",")
    try:
        if len(parts) not in (2, 3):
            raise ValueError("expected two or three numbers")
        count = int(parts[2]) if len(parts) == 3 else SEQUENCES
        return Epoch(mean=float(parts[0]), deviation=float(parts[1]), sequences=count)
    except ValueError as error:
        raise ValueError(
            f"--lengths {text}: {error}; give fixed, or mean and standard deviation of the tokens "
            "of a sequence, such as 3234,2548"
        ) from None


def records(epoch: Epoch, *, limit: int, micro_batch: int, ranks: int, seed: int) -> list[int]:
    """Lengths of the micro-batches of one rank that were the longest so far when they came.

    Args:
        epoch: the sequences.
        limit: longer ones are left out.
        micro_batch: sequences of a micro-batch; the longest of them decides.
        ranks: data-parallel ranks that share the epoch.
        seed: of the epoch's order.
    """
    from statistics import NormalDist  # few plans ask for it

    spread = sqrt(log1p((epoch.deviation / epoch.mean) ** 2))
    tokens = NormalDist(log(epoch.mean) - spread**2 / 2, spread)
    kept = tokens.cdf(log(limit))
    draw, best, found = Random(seed), 0.0, []
    for _ in range(max(1, round(kept * epoch.sequences / (micro_batch * ranks)))):
        place = draw.random()
        if place > best:
            best = place
            share = kept * place ** (1 / micro_batch)
            length = exp(tokens.inv_cdf(share)) if 0 < share < 1 else limit
            found.append(max(1, min(limit, round(length))))
    return found
