"""The reduce bucket of ZeRO 1 and 2: when it is there, and the fullest moment of a reduction.

Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/stage_1_and_2.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.chain import Link
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.zero_beside import with_bucket
from vram_plan.estimator.sharding.zero_layout import Arrival, arrivals, departures
from vram_plan.estimator.sharding.zero_moment import Candidate, fullest, moment_entries
from vram_plan.estimator.sharding.zero_parts import DS, FP64, REDUCTION, Shares
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    EMBEDDING_BACKWARD,
    PASSES,
)

SOURCE = f"{DS}/zero/stage_1_and_2.py"
BACKWARD = (BACKWARD_LAST, BACKWARD_FIRST, EMBEDDING_BACKWARD)


def hooked(shares: Shares) -> bool:
    """Gradients leave for the bucket while the backward pass runs."""
    return shares.config.zero == 2 or shares.config.zero_sizes.overlap_comm


def reached(shares: Shares) -> Iterator[str]:
    """Instants of the backward pass that come after the first reduction."""
    first = next(iter(_arrivals(shares)), None)
    if first is None or first.at is None:
        return
    kind = shares.links[first.at.link].segment.kind
    if kind not in {"layer", "embedding"}:
        yield BACKWARD_LAST
    if kind != "embedding":
        yield BACKWARD_FIRST
        yield EMBEDDING_BACKWARD


def links(shares: Shares) -> tuple[Link, ...]:
    """The chain with the bucket beside what goes back while it is there."""
    if _stays(shares):
        return shares.links
    return with_bucket(shares, _bucket(shares))


def bucket_entries(shares: Shares) -> list[Entry]:
    """The fullest moment of a reduction, and the bucket; `links` has it beside the segments."""
    chosen = fullest(shares, list(_candidates(shares)))
    return [
        _bucket(shares),
        *moment_entries(shares, chosen, f"{SOURCE} allreduce_bucket"),
        Entry(
            component="gradients",
            name="gradients of a partition that were reduced before",
            bytes=chosen.held,
            formula=f"{chosen.held:,} bytes on the rank whose weights are reduced first",
            source=f"{SOURCE} copy_grads_in_partition",
            alive=frozenset({REDUCTION}),
        ),
    ]


def _bucket(shares: Shares) -> Entry:
    sizes, width = shares.config.zero_sizes, shares.width
    buffers = 2 if sizes.overlap_comm else 1
    elements = sizes.reduce_bucket_size
    if not sizes.contiguous_gradients and not shares.offloaded:
        buffers, elements = 1, min(elements, shares.trainable)
    wide = shares.grad_width if shares.config.zero == 1 else width
    return Entry(
        component="buffers",
        name="reduce bucket",
        bytes=buffers * elements * wide,
        formula=f"{buffers} × {elements:,} elements · {wide} bytes",
        source=f"{SOURCE} setup_buckets",
        alive=frozenset({*PASSES, REDUCTION} if _stays(shares) else {REDUCTION}),
    )


def _stays(shares: Shares) -> bool:
    """Stage 1 makes the bucket in the first micro-batch and frees it in the last."""
    return shares.config.zero == 1 and shares.config.grad_accum > 1


def _candidates(shares: Shares) -> Iterator[Candidate]:
    if hooked(shares):
        yield from _during_backward(shares)
    else:
        yield from _after_backward(shares)


def _arrivals(shares: Shares) -> tuple[Arrival, ...]:
    bucket = shares.config.zero_sizes.reduce_bucket_size
    return arrivals(shares.layout, max(1, shares.partition), bucket)


def _copied(shares: Shares, r: Arrival) -> int:
    """Bytes of the flat copy, or of the fp64 copy of a gradient on its way to the host."""
    copied = shares.width * r.copied
    if shares.offloaded:
        largest = max(piece.numel for piece in r.within)
        copied = max(copied, FP64 * min(largest, shares.partition))
    return copied


def _during_backward(shares: Shares) -> Iterator[Candidate]:
    """Stage 2: a rank's partition is allocated by the first reduction that reaches it."""
    moves = shares.config.zero == 1 and shares.config.grad_accum > 1
    held = left = 0
    for r in _arrivals(shares):
        left += shares.width * r.elements if moves else 0
        copied = max(0, _copied(shares, r) - left)
        yield Candidate(at=r.at, copied=copied, held=max(0, held - left))
        held = max(held, _allocated(shares, r))
        yield Candidate(at=r.at, copied=0, held=max(0, held - left))


def _allocated(shares: Shares, r: Arrival) -> int:
    """Bytes of the largest partition that a reduction reaches, unless it is there already."""
    separate = shares.grad_width != shares.width
    if shares.offloaded or (separate and shares.config.grad_accum > 1):
        return 0
    if separate:
        return shares.grad_width * shares.partition
    return shares.width * max(shares.spans[part] for part in r.parts)


def _after_backward(shares: Shares) -> Iterator[Candidate]:
    """Stage 1: a rank's partition is allocated while many other gradients are still there.

    Those in the bucket have left where autograd put them; larger ones stay to the end.
    """
    width, left, own = shares.width, 0, 0
    bucket = shares.config.zero_sizes.reduce_bucket_size
    for r in departures(shares.layout, max(1, shares.partition), bucket):
        left += width * r.elements
        yield Candidate(at=None, copied=max(0, own + _copied(shares, r) - left), held=0)
        if not shares.offloaded:
            own = max(own, *(width * shares.spans[part] for part in r.parts))
        yield Candidate(at=None, copied=max(0, own - left), held=0)
