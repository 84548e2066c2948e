"""ZeRO stages 1 and 2: whole weights, divided master weights and optimizer states.

Stage 2 moves every gradient into a bucket as soon as it is there, and keeps those of its own
partition; stage 1 does the same once the backward pass is over (or at once with
``overlap_comm``). Either holds whole every weight's gradient that its partition cuts.
Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/stage_1_and_2.py``.

Left out: the flat copy of the weights made at initialisation (DeepSpeed makes it on the host
where the device has no room), and buffers of ``round_robin_gradients``.
"""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import packed_entries
from vram_plan.estimator.sharding.zero_bucket import flattened, reductions
from vram_plan.estimator.sharding.zero_moment import Candidate, fullest, moment_entries
from vram_plan.estimator.sharding.zero_offload import flat_offload_entries
from vram_plan.estimator.sharding.zero_parts import DS, FP32, FP64, REDUCTION, Shares
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    CLIPPING,
    EMBEDDING_BACKWARD,
    OPTIMIZER_STEP,
    PASSES,
)

SOURCE = f"{DS}/zero/stage_1_and_2.py"
BACKWARD = (BACKWARD_LAST, BACKWARD_FIRST, EMBEDDING_BACKWARD)
STEP = (CLIPPING, OPTIMIZER_STEP)


def entries(shares: Shares) -> list[Entry]:
    """Every weight, gradient, state and buffer of stage 1 or 2."""
    found = weight_entries(shares)
    if offloaded(shares):
        found += flat_offload_entries(shares)
        found += [] if hooked(shares) else [_whole_gradients(shares, shares.trainable)]
    else:
        copies = shares.width * (shares.span + shares.partition)
        found += state_entries(shares, shares.partition, freed=copies)
        found += _gradient_entries(shares)
        found += _step_entries(shares)
    return [*found, *bucket_entries(shares)]


def hooked(shares: Shares) -> bool:
    """Gradients leave for the bucket while the backward pass runs."""
    return shares.config.zero == 2 or shares.config.zero_sizes.overlap_comm


def offloaded(shares: Shares) -> bool:
    """The optimizer is on the host."""
    return shares.config.offload in {"optimizer", "optimizer+params"}


def weight_entries(shares: Shares) -> list[Entry]:
    """The weights in the compute dtype: learning ones in one flat buffer, frozen ones as they are."""
    width, padding = shares.width, shares.padding
    divided = FP32 * -(-padding // shares.ranks)
    return [
        Entry(
            component="weights",
            name="trainable weights",
            bytes=width * shares.trainable,
            formula=f"{width} · {shares.trainable:,} parameters",
            source=SOURCE,
            state=True,
        ),
        Entry(
            component="weights",
            name="frozen weights",
            bytes=shares.inventory.nbytes(trainable=False),
            formula=f"{shares.inventory.numel(trainable=False):,} parameters, not divided",
            source=SOURCE,
            state=True,
        ),
        *packed_entries(shares.rank),
        Entry(
            component="buffers",
            name="padding of the flat weights and of the partition's states",
            bytes=padding * width + 3 * divided,
            formula=f"{padding} elements, so that 2 · {shares.ranks} divides the flat weights",
            source=SOURCE,
        ),
    ]


def state_entries(shares: Shares, elements: int, *, freed: int) -> list[Entry]:
    """fp32 master weights and optimizer states of ``elements`` parameters on the device.

    ``freed`` are bytes of gradient copies that are gone when the optimizer makes its temporaries.
    """
    states = shares.states(elements)
    share = f"{shares.trainable:,} parameters / {shares.ranks} ranks"
    return [
        Entry(
            component="master_weights",
            name="fp32 master weights",
            bytes=FP32 * elements,
            formula=f"4 · {share}",
            source=SOURCE,
            state=True,
        ),
        Entry(
            component="optimizer_states",
            name="optimizer states",
            bytes=states.nbytes,
            formula=f"{states.formula}, {share}",
            source=states.source,
            state=True,
        ),
        Entry(
            component="temporaries",
            name="temporaries of the optimizer beyond the gradient copies it no longer needs",
            bytes=max(0, states.step - freed),
            formula=states.step_formula,
            source=states.source,
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]


def _gradient_entries(shares: Shares) -> list[Entry]:
    """The partition's gradients, what cut weights add, and (stage 1) the other partitions'."""
    width, wide = shares.width, shares.grad_width
    cut = 0 if wide != width else shares.span - shares.partition
    held = _held_instants(shares)
    found = [
        Entry(
            component="gradients",
            name="gradients of the partition",
            bytes=wide * shares.partition,
            formula=f"{wide} · {shares.trainable:,} parameters / {shares.ranks} ranks",
            source=SOURCE,
            alive=_state_instants(shares, held),
            state=True,
        ),
        Entry(
            component="gradients",
            name="whole gradients of weights that the partition cuts",
            bytes=width * cut,
            formula=f"{width} · ({shares.span:,} − {shares.partition:,}) elements",
            source=f"{SOURCE} copy_grads_in_partition",
            alive=held,
        ),
    ]
    if shares.config.zero == 1 and (not hooked(shares) or shares.config.grad_accum > 1):
        found.append(_whole_gradients(shares, shares.trainable - shares.partition))
    elif shares.config.grad_accum > 1 and wide == width:
        found.append(_second_partition(shares))
    return found


def _state_instants(shares: Shares, held: frozenset[str]) -> frozenset[str]:
    """The same for its own gradients: where stage 1 keeps all, they are among them."""
    if shares.config.zero == 2 or not (shares.config.grad_accum > 1 or not hooked(shares)):
        return held
    passes = PASSES if shares.config.grad_accum > 1 else ()
    return held | {*passes, REDUCTION}


def _held_instants(shares: Shares) -> frozenset[str]:
    """When the partition's gradients are alive beside all others; empty: always."""
    if shares.config.grad_accum > 1 and shares.config.zero == 2:
        return frozenset()
    if shares.config.grad_accum > 1:
        return frozenset(STEP)
    return frozenset({*STEP, *(_reached(shares) if hooked(shares) else ())})


def _whole_gradients(shares: Shares, elements: int) -> Entry:
    """Stage 1: gradients of all weights stay where autograd left them until they are reduced."""
    accumulates = shares.config.grad_accum > 1
    return Entry(
        component="gradients",
        name="gradients that are not reduced yet",
        bytes=shares.width * elements,
        formula=f"{shares.width} · {elements:,} parameters",
        source=SOURCE,
        alive=frozenset({*PASSES, REDUCTION} if accumulates else {REDUCTION}),
        state=True,
    )


def _second_partition(shares: Shares) -> Entry:
    """Stage 2: a micro-batch's partition, before it is added to that of the earlier ones."""
    return Entry(
        component="temporaries",
        name="gradients of the partition of one micro-batch",
        bytes=shares.width * shares.span,
        formula=f"{shares.width} · {shares.span:,} elements, added at the end of its backward pass",
        source=f"{SOURCE} independent_gradient_partition_epilogue",
        alive=frozenset(_reached(shares)),
    )


def _reached(shares: Shares) -> Iterator[str]:
    """Instants of the backward pass that come after the first reduction."""
    arrival = shares.trained[::-1]
    numels = [piece.numel for piece in arrival]
    first = next(reductions(numels, shares.config.zero_sizes.reduce_bucket_size), None)
    if first is None or first.end >= len(arrival):
        return
    at = arrival[first.end]
    kind = shares.links[at.link].segment.kind
    if kind not in {"layer", "embedding"}:
        yield BACKWARD_LAST
    if kind != "embedding":
        yield BACKWARD_FIRST
        yield EMBEDDING_BACKWARD


def bucket_entries(shares: Shares) -> list[Entry]:
    """The bucket, and the fullest moment of its reduction."""
    sizes, width = shares.config.zero_sizes, shares.width
    buffers = 2 if sizes.overlap_comm else 1
    elements = sizes.reduce_bucket_size
    if not sizes.contiguous_gradients and shares.config.offload == "none":
        buffers, elements = 1, min(elements, shares.trainable)
    wide = shares.grad_width if shares.config.zero == 1 else width
    found = [
        Entry(
            component="buffers",
            name="reduce bucket",
            bytes=buffers * elements * wide,
            formula=f"{buffers} × {elements:,} elements · {wide} bytes",
            source=f"{SOURCE} setup_buckets",
            alive=frozenset({*_filled(shares), REDUCTION}),
        )
    ]
    chosen = fullest(shares, list(_candidates(shares)))
    return [
        *found,
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


def _filled(shares: Shares) -> tuple[str, ...]:
    """When the bucket is there: stage 1 makes it in the first micro-batch, frees it in the last."""
    waits = shares.config.zero == 1 and shares.config.grad_accum > 1
    return PASSES if waits else BACKWARD


def _candidates(shares: Shares) -> Iterator[Candidate]:
    if hooked(shares):
        yield from _during_backward(shares)
    else:
        yield from _after_backward(shares)


def _during_backward(shares: Shares) -> Iterator[Candidate]:
    """Stage 2: a rank's partition is allocated by the first reduction that reaches it."""
    arrival, width = shares.trained[::-1], shares.width
    bucket = shares.config.zero_sizes.reduce_bucket_size
    offsets, count, size = shares.offsets, len(arrival), max(1, shares.partition)
    moves = shares.config.zero == 1 and shares.config.grad_accum > 1
    held = left = 0
    for r in reductions([piece.numel for piece in arrival], bucket):
        begin, end = offsets[count - r.end], offsets[count - r.first]
        copied = width * flattened(begin, end, size, bucket)
        at = arrival[r.end] if r.end < count else None
        left += width * r.elements if moves and not r.oversized else 0
        if offloaded(shares):
            wide = FP64 * min(size, max(p.numel for p in arrival[r.first : r.end]))
            yield Candidate(at=at, copied=max(0, max(copied, wide) - left), held=0)
            continue
        yield Candidate(at=at, copied=max(0, copied - left), held=max(0, held - left))
        held = max(held, _allocated(shares, begin // size, (end - 1) // size))
        yield Candidate(at=at, copied=0, held=max(0, held - left))


def _allocated(shares: Shares, first: int, last: int) -> int:
    """Bytes of the largest partition from ``first`` to ``last``, unless it is there already."""
    separate = shares.grad_width != shares.width
    if separate and shares.config.grad_accum > 1:
        return 0
    if separate:
        return shares.grad_width * shares.partition
    return shares.width * max(shares.spans.get(part, 0) for part in range(first, last + 1))


def _after_backward(shares: Shares) -> Iterator[Candidate]:
    """Stage 1: the first rank's partition is allocated while most gradients are still there.

    Those in the bucket have left where autograd put them; larger ones stay to the end.
    """
    width = shares.width
    bucket = shares.config.zero_sizes.reduce_bucket_size
    pieces, offsets = shares.trained, shares.offsets
    own = 0 if offloaded(shares) else width * shares.span
    left = freed = 0
    for number, r in enumerate(reductions([p.numel for p in pieces], bucket)):
        left += 0 if r.oversized else width * r.elements
        if r.oversized and offsets[r.first] < shares.partition:
            freed += width * r.elements
        copied = width * flattened(offsets[r.first], offsets[r.end], shares.partition, bucket)
        if offloaded(shares):
            largest = max(piece.numel for piece in pieces[r.first : r.end])
            copied = max(copied, FP64 * min(largest, shares.partition))
        yield Candidate(at=None, copied=max(0, copied - left), held=0)
        if not number:
            yield Candidate(at=None, copied=max(0, own - left), held=0)
    yield Candidate(at=None, copied=max(0, own - left - freed), held=0)


def _step_entries(shares: Shares) -> list[Entry]:
    """Clipping computes norms in fp64; the update reads an fp32 copy of the gradients."""
    whole = shares.largest_slice if shares.grad_width != shares.width else shares.largest
    flat = shares.width * shares.partition
    wide = shares.grad_width == FP32
    return [
        Entry(
            component="temporaries",
            name="fp64 copy of a gradient for its norm",
            bytes=FP64 * min(whole, shares.partition),
            formula=f"8 · {min(whole, shares.partition):,} elements",
            source=f"{SOURCE} get_grad_norm_direct",
            alive=frozenset({CLIPPING}),
        ),
        Entry(
            component="temporaries",
            name="flat copy of the partition's gradients",
            bytes=0 if shares.grad_width != shares.width else flat,
            formula=f"{shares.width} · {shares.partition:,} elements",
            source=f"{SOURCE} step",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
        Entry(
            component="temporaries",
            name="fp32 copy of the partition's gradients",
            bytes=0 if wide else FP32 * shares.partition,
            formula=f"4 · {shares.partition:,} elements",
            source=f"{SOURCE} step",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]
