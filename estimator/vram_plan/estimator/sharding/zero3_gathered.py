"""What ZeRO-3 gathers: small weights for good, the others module by module, gradients by bucket.

Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/parameter_offload.py``,
``partitioned_param_coordinator.py``, ``stage3.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from vram_plan.estimator.choices import WHOLE_MODEL
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.zero_calls import Course, module_calls
from vram_plan.estimator.sharding.zero_gather import Gathered, Gathering, Limits
from vram_plan.estimator.sharding.zero_layout import Layout, Piece, arrivals
from vram_plan.estimator.sharding.zero_moment import Candidate, fullest, moment_entries
from vram_plan.estimator.sharding.zero_parts import (
    DS,
    FP32,
    FP64,
    REDUCTION,
    Shares,
    rounded,
    share,
)
from vram_plan.estimator.sharding.zero_profile import profile
from vram_plan.estimator.sharding.zero_reduce import BACKWARD
from vram_plan.estimator.simulate import RECOMPUTED
from vram_plan.estimator.step import OPTIMIZER_STEP, PASSES

GATHER = f"{DS}/zero/partitioned_param_coordinator.py"
NORM_ELEMENTS = 250_000_000
"""Elements in fp64 at a time when gradients go to the host (``_constant_buffered_norm2``)."""
READ_OUTSIDE = frozenset({"liger", "chunked"})
"""Losses that multiply with the head's weight themselves."""
_NOTHING = Gathered(peaks={}, running={}, closing={}, left={})


def gathered_entries(shares: Shares, largest: int) -> list[Entry]:
    """Small weights, whole from one update to the next."""
    if shares.ranks == 1 and shares.config.offload != "optimizer+params":
        return []
    threshold = shares.config.zero_sizes.stage3_param_persistence_threshold
    small = [piece for piece in shares.pieces if piece.numel <= threshold]
    sizes = [rounded(share(p.numel, shares.ranks) * shares.ranks * p.itemsize) for p in small]
    kept = sum(sizes)
    # The codes that a layer of 8 bits holds anyway take the gathered ones' place as it runs.
    swaps = shares.config.quantization == "int8"
    ran = sum(s for p, s in zip(small, sizes, strict=True) if not (swaps and _in_codes(p)))
    copies = 0 if shares.offloaded else _update_copies(shares, largest)
    return [
        Entry(
            component="buffers",
            name="small weights kept whole",
            bytes=ran,
            formula=f"{len(small):,} weights of at most {threshold:,} elements",
            source=f"{DS}/zero/parameter_offload.py mark_persistent_parameters",
            alive=frozenset({*PASSES, REDUCTION}),
        ),
        Entry(
            component="buffers",
            name="small weights gathered again after the update, beyond its copies",
            bytes=max(0, kept - copies),
            formula=f"{kept:,} − {copies:,} bytes",
            source=f"{DS}/zero/stage3.py _post_step",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]


def _in_codes(piece: Piece) -> bool:
    return piece.itemsize == 1 and not piece.trainable


def _update_copies(shares: Shares, largest: int) -> int:
    """Bytes of the copies of a sub-group's gradients."""
    flat = shares.grad_width * largest if len(shares.trained) > 1 else 0
    return flat + (FP32 * largest if shares.grad_width != FP32 else 0)


def gathered(shares: Shares) -> Gathered:
    """Bytes gathered in the passes; none on a single GPU."""
    if shares.ranks == 1 and shares.config.offload != "optimizer+params":
        return _NOTHING
    return followed(shares, _course(shares), flat=shares.ranks > 1)


def followed(shares: Shares, course: Course, *, flat: bool = True) -> Gathered:
    """DeepSpeed's coordinator on its way through a step, once for all who ask."""
    sizes = shares.config.zero_sizes
    limits = Limits(
        prefetch=sizes.stage3_prefetch_bucket_size,
        live=sizes.stage3_max_live_parameters,
        reuse=sizes.stage3_max_reuse_distance,
    )
    return _simulate(
        shares.layout,
        limits,
        sizes.stage3_param_persistence_threshold,
        course,
        flat=flat,
        swaps=shares.config.quantization == "int8",
    )


def _course(shares: Shares) -> Course:
    config = shares.config
    runs = [link.run for link in shares.links]
    silent = tuple(profile(run).silent if run else frozenset() for run in runs)
    return Course(
        checkpointed=config.checkpointing in RECOMPUTED,
        silent=silent if any(silent) else (),
        outside=config.loss in READ_OUTSIDE,
        wrapped=config.method not in WHOLE_MODEL,
    )


@lru_cache(maxsize=256)
def _simulate(
    layout: Layout, limits: Limits, resident: int, course: Course, *, flat: bool, swaps: bool
) -> Gathered:
    pieces = layout.pieces
    return Gathering(
        numels=[piece.numel for piece in pieces],
        nbytes=[rounded(piece.numel * piece.itemsize) for piece in pieces],
        resident=frozenset(n for n, piece in enumerate(pieces) if piece.numel <= resident),
        limits=limits,
        calls=list(module_calls(layout, course)),
        flat=flat,
        swapped=frozenset(n for n, piece in enumerate(pieces) if swaps and _in_codes(piece)),
        frozen=frozenset(n for n, piece in enumerate(pieces) if not piece.trainable),
        viewed=frozenset(n for n, piece in enumerate(pieces) if not swaps and _in_codes(piece)),
    ).run()


def bucket_entries(shares: Shares) -> list[Entry]:
    """The bucket, always there, and the fullest moment of its reduction."""
    sizes, width = shares.config.zero_sizes, shares.width
    elements = sizes.reduce_bucket_size
    whole = sizes.contiguous_gradients
    found = [
        Entry(
            component="buffers",
            name="reduce bucket",
            bytes=width * (elements if whole else min(elements, shares.trainable)),
            formula=f"{elements:,} elements · {width} bytes",
            source=f"{DS}/zero/stage3.py _setup_for_real_optimizer",
            alive=frozenset() if whole else frozenset({*BACKWARD, REDUCTION}),
        )
    ]
    candidates = list(_candidates(shares))
    if not candidates:
        return found
    chosen = fullest(shares, candidates)
    return [
        *found,
        *moment_entries(shares, chosen, "DeepSpeed 0.19.8 deepspeed/runtime/comm"),
        Entry(
            component="temporaries",
            name="weights gathered while gradients are reduced, and copies for the host",
            bytes=chosen.held,
            formula="as in the backward pass of that segment",
            source=GATHER,
            alive=frozenset({REDUCTION}),
        ),
    ]


def _candidates(shares: Shares) -> Iterator[Candidate]:
    """Reduce-scatter copies the gradients of a bucket into one tensor, padded for the ranks."""
    ranks, bucket = shares.ranks, shares.config.zero_sizes.reduce_bucket_size
    closing = gathered(shares).closing
    numbers = {piece.key: number for number, piece in enumerate(shares.pieces)}
    for r in arrivals(shares.layout, max(1, shares.partition), bucket):
        copied = shares.width * sum(share(piece.numel, ranks) * ranks for piece in r.within)
        if len(r.within) == 1 and r.within[0].numel % ranks == 0:
            copied = 0
        held = closing.get(numbers[r.at.key], 0) if r.at else 0
        if shares.offloaded:
            part = max(share(piece.numel, ranks) for piece in r.within)
            held += FP64 * min(part, NORM_ELEMENTS)
        yield Candidate(at=r.at, copied=copied, held=held)
