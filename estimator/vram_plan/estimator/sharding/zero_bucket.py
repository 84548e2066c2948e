"""DeepSpeed's reduce bucket: when it is full, and what a reduction allocates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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


def cut(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """(partition, elements) of the range [begin, end) cut by partitions of ``size``."""
    while begin < end:
        part = begin // size
        stop = min(end, (part + 1) * size)
        yield part, stop - begin
        begin = stop


def slices(ranges: Iterable[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """(partition, elements) of gradients as they lie in the bucket.

    Those of one partition that follow one another are one slice (``average_tensor``).

    Args:
        ranges: where each gradient begins and ends in the flat weights, in the bucket's order.
        size: elements of a partition.
    """
    found: list[tuple[int, int]] = []
    for begin, end in ranges:
        for part, length in cut(begin, end, size):
            if found and found[-1][0] == part:
                length += found.pop()[1]
            found.append((part, length))
    return found


def flattened(found: Iterable[tuple[int, int]], bucket: int) -> int:
    """Elements of the largest flat copy made to all-reduce the slices.

    One slice is a view; several are copied together, as many as it takes to exceed the bucket
    (``allreduce_and_scatter``, ``allreduce_bucket``).
    """
    largest = held = count = 0
    for _, length in found:
        held, count = held + length, count + 1
        if held > bucket:
            largest = max(largest, held if count > 1 else 0)
            held = count = 0
    return max(largest, held if count > 1 else 0)
