"""What ZeRO-3 gathers: small weights for good, the others module by module, gradients by bucket.

Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/parameter_offload.py``,
``partitioned_param_coordinator.py``, ``stage3.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.zero_calls import module_calls
from vram_plan.estimator.sharding.zero_gather import Gathered, Gathering, Limits
from vram_plan.estimator.sharding.zero_layout import Layout, arrivals
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
from vram_plan.estimator.sharding.zero_reduce import BACKWARD
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    EMBEDDING_BACKWARD,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    OPTIMIZER_STEP,
    PASSES,
    moments,
)

GATHER = f"{DS}/zero/partitioned_param_coordinator.py"
NORM_ELEMENTS = 250_000_000
"""Elements in fp64 at a time when gradients go to the host (``_constant_buffered_norm2``)."""
_NOTHING = Gathered(peaks={}, running={}, closing={})


def gathered_entries(shares: Shares, largest: int) -> list[Entry]:
    """Small weights, whole from one update to the next, and those gathered for their modules."""
    if shares.ranks == 1 and shares.config.offload != "optimizer+params":
        return []
    threshold = shares.config.zero_sizes.stage3_param_persistence_threshold
    small = [piece for piece in shares.pieces if piece.numel <= threshold]
    kept = sum(
        rounded(share(piece.numel, shares.ranks) * shares.ranks * piece.itemsize) for piece in small
    )
    seen = gathered(shares)
    copies = 0 if shares.offloaded else _update_copies(shares, largest)
    found = [
        Entry(
            component="buffers",
            name="small weights kept whole",
            bytes=kept,
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
    for instant, nbytes in _by_instant(shares, seen).items():
        found.append(
            Entry(
                component="temporaries",
                name=f"weights gathered ({instant.replace('_', ' ')})",
                bytes=nbytes,
                formula="weights of running modules, of those needed again soon and of those "
                "gathered ahead, with the buckets they are unpacked from",
                source=GATHER,
                alive=frozenset({instant}),
            )
        )
    return found


def _update_copies(shares: Shares, largest: int) -> int:
    """Bytes of the copies of a sub-group's gradients."""
    flat = shares.grad_width * largest if len(shares.trained) > 1 else 0
    return flat + (FP32 * largest if shares.grad_width != FP32 else 0)


def gathered(shares: Shares) -> Gathered:
    """Bytes gathered in the passes; none on a single GPU."""
    if shares.ranks == 1 and shares.config.offload != "optimizer+params":
        return _NOTHING
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
        checkpointed=shares.config.checkpointing in {"full", "offload"},
        flat=shares.ranks > 1,
    )


@lru_cache(maxsize=256)
def _simulate(
    layout: Layout, limits: Limits, resident: int, *, checkpointed: bool, flat: bool
) -> Gathered:
    pieces = layout.pieces
    return Gathering(
        numels=[piece.numel for piece in pieces],
        nbytes=[rounded(piece.numel * piece.itemsize) for piece in pieces],
        resident=frozenset(n for n, piece in enumerate(pieces) if piece.numel <= resident),
        limits=limits,
        calls=list(module_calls(layout, checkpointed=checkpointed)),
        flat=flat,
    ).run()


def _by_instant(shares: Shares, seen: Gathered) -> dict[str, int]:
    """How much more is alive in every instant than without gathering.

    The fullest segment may be another one than without: the largest sum of activations and
    gathered weights counts, less the activations that the instant shows already.
    """
    layers = [i for i, link in enumerate(shares.links) if link.segment.kind == "layer"]
    shown = moments(shares.links)
    best: dict[str, int] = {}
    for where, nbytes in seen.peaks.items():
        direction, link, layer = where
        kind = shares.links[link].segment.kind
        if direction == "forward":
            instant = LOSS if kind == "head" else FORWARD
        elif kind == "layer":
            last = layer or link == layers[-1]
            instant = BACKWARD_LAST if last else BACKWARD_FIRST
        else:
            instant = LOSS_BACKWARD if kind == "head" else EMBEDDING_BACKWARD
        alive = shares.alive(link, layer, backward=direction == "backward")
        if instant == LOSS:
            # Its weights are unpacked before the head runs: no logits exist by then.
            unpacking = nbytes + shares.kept[link] + shares.entered[link]
            best[FORWARD] = max(best.get(FORWARD, 0), unpacking)
            nbytes = seen.running[where]
        best[instant] = max(best.get(instant, 0), nbytes + alive)
    without = {
        instant: sum(moment.earlier.values()) + sum(moment.inside.values())
        for instant, moment in shown.items()
    }
    return {instant: max(0, best[instant] - without.get(instant, 0)) for instant in best}


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
