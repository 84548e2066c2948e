"""DeepSpeed's reduce bucket: when it is full, and what a reduction allocates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """One emptying of the bucket.

    Attributes:
        first: index of the first gradient in it, in the order of arrival.
        end: index after the last one; that gradient's arrival (or the end) is the moment.
        elements: in it.
        oversized: one gradient that is larger than the bucket and never was in its buffer.
    """

    first: int
    end: int
    elements: int
    oversized: bool


def reductions(numels: Sequence[int], bucket: int) -> Iterator[Reduction]:
    """Fill the bucket with gradients as they arrive; a gradient that does not fit empties it.

    Source: DeepSpeed 0.19.8 zero/stage_1_and_2.py and stage3.py
    ``reduce_independent_p_g_buckets_and_remove_grads``.
    """
    first = elements = 0
    for i, numel in enumerate(numels):
        if elements and elements + numel > bucket:
            yield Reduction(first=first, end=i, elements=elements, oversized=elements > bucket)
            first, elements = i, 0
        elements += numel
    if elements:
        yield Reduction(
            first=first, end=len(numels), elements=elements, oversized=elements > bucket
        )


def cut(begin: int, end: int, size: int) -> Iterator[int]:
    """Lengths of the pieces into which partitions of ``size`` cut the range [begin, end)."""
    while begin < end:
        stop = min(end, (begin // size + 1) * size)
        yield stop - begin
        begin = stop


def flattened(begin: int, end: int, size: int, bucket: int) -> int:
    """Elements of the largest flat copy made to all-reduce the range [begin, end).

    Slices of one partition are a view; slices of several are copied together, as many as it takes
    to exceed the bucket (``allreduce_and_scatter``, ``allreduce_bucket``).
    """
    largest = held = slices = 0
    for length in cut(begin, end, size):
        held, slices = held + length, slices + 1
        if held > bucket:
            largest = max(largest, held if slices > 1 else 0)
            held = slices = 0
    return max(largest, held if slices > 1 else 0)
