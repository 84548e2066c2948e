"""The largest number that fits, exactly: it fits and the next one up does not.

At a fixed length the bytes of every instant are affine in the micro-batch, up to rounding and
chunking, so a straight line through two readings lands on the answer or beside it. What is returned
was read, never extrapolated; a line that misleads gives way to halving.
"""

from __future__ import annotations

from collections.abc import Callable

Room = Callable[[int], int]
"""A number → bytes left over (negative: so many are missing)."""
Ends = Callable[[int], bool]
"""A number that fits → whether the next one up is known to miss."""
_PATIENCE = 8
"""Readings that a line may guide; eager attention, quadratic in the length, needs about five."""


def largest_that_fits(room: Room, most: int) -> int:
    """The largest k ≤ ``most`` with ``room(k) ≥ 0`` and ``room(k + 1) < 0``; 0 where 1 misses.

    Args:
        room: bytes left over with k; it falls as k grows and remembers what it was asked.
        most: no larger number is tried.
    """
    return 0 if room(1) < 0 else largest_from(1, room, most)


def largest_from(low: int, room: Room, most: int, guess: int = 2, ends: Ends | None = None) -> int:
    """The same, given one that fits.

    Args:
        low: it fits.
        room: bytes left over with k; it falls as k grows and remembers what it was asked.
        most: no larger number is tried.
        guess: where to look first.
        ends: asked where it is worth a thought, in place of reading the next one up.
    """
    high = most + 1  # does not fit, or is not allowed
    guess, readings = max(low + 1, min(guess, most)), 0
    while high - low > 1:
        step = guess - low
        if room(guess) >= 0:
            low = guess
            if ends is not None and low < most and ends(low):
                return low
        else:
            high = guess
        readings += 1
        if low == guess and step > 1:
            guess = low + 1  # the guess may have hit it: then this one fails and all is done
        elif high == guess and readings == 1:
            guess = max(low + 1, high - 1)  # or it is the next one down
        elif readings > _PATIENCE:
            guess = min(2 * low, high - 1) if high > most else (low + high) // 2
        else:
            guess = _by_line(room, low, low - 1 if high > most else high, high)
    return low


def _by_line(room: Room, low: int, other: int, high: int) -> int:
    """Where the line through two readings crosses zero, strictly between ``low`` and ``high``."""
    slope = (room(low) - room(other)) / (other - low)
    reach = high - low - 1 if slope <= 0 else int(room(low) / slope)
    return low + max(1, min(reach, high - low - 1))
