"""ZeRO stage 3: everything divided; weights are gathered module by module.

Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/stage3.py``, ``partition_parameters.py``,
``parameter_offload.py``. The weights are divided as they are loaded (``deepspeed.zero.Init``,
which transformers' ``from_pretrained`` uses), so initialisation needs less than the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.quantization import SOURCES, packed_bytes
from vram_plan.estimator.sharding.zero12 import BACKWARD
from vram_plan.estimator.sharding.zero_bucket import reductions
from vram_plan.estimator.sharding.zero_calls import module_calls, numbered
from vram_plan.estimator.sharding.zero_gather import Call, Gathering, Limits
from vram_plan.estimator.sharding.zero_moment import Candidate, fullest, moment_entries
from vram_plan.estimator.sharding.zero_offload import (
    divided_offload_entries,
    weight_offload_entries,
)
from vram_plan.estimator.sharding.zero_parts import (
    DS,
    FP32,
    FP64,
    REDUCTION,
    Piece,
    Shares,
    rounded,
)
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    CLIPPING,
    EMBEDDING_BACKWARD,
    FORWARD,
    LOSS,
    LOSS_BACKWARD,
    OPTIMIZER_STEP,
    PASSES,
    moments,
)

SOURCE = f"{DS}/zero/stage3.py"
GATHER = f"{DS}/zero/partitioned_param_coordinator.py"
NORM_ELEMENTS = 250_000_000
"""Elements in fp64 at a time when gradients go to the host (``_constant_buffered_norm2``)."""
Peaks = dict[tuple[str, int, int], int]


def entries(shares: Shares) -> list[Entry]:
    """Every weight, gradient, state, buffer and gathered weight of stage 3."""
    groups = sub_groups(shares)
    found = _weight_entries(shares)
    if shares.config.offload in {"optimizer", "optimizer+params"}:
        found += divided_offload_entries(shares, groups)
    else:
        found += _state_entries(shares, groups)
        found += _gradient_entries(shares, groups)
    return [*found, *_gathered_entries(shares, max(groups, default=0)), *_bucket_entries(shares)]


def share(numel: int, ranks: int) -> int:
    """Elements of one weight's partition, padded."""
    return -(-numel // ranks)


def sub_groups(shares: Shares) -> list[int]:
    """Elements of a rank's sub-groups: weights are added until one has ``sub_group_size``."""
    sizes = [share(piece.numel, shares.ranks) for piece in shares.trained]
    limit = shares.config.zero_sizes.sub_group_size
    if limit >= sum(sizes):
        return [sum(sizes)]
    groups, held = [], 0
    for size in sizes:
        held += size
        if held >= limit:
            groups.append(held)
            held = 0
    return [*groups, held] if held else groups


def _weight_entries(shares: Shares) -> list[Entry]:
    """The rank's part of the weights, on the device unless they are offloaded."""
    width, ranks = shares.width, shares.ranks
    frozen = [piece for piece in shares.pieces if not piece.trainable]
    parts = sum(share(piece.numel, ranks) for piece in frozen if piece.itemsize == width)
    learning = sum(share(piece.numel, ranks) for piece in shares.trained)
    if shares.config.offload == "optimizer+params":
        return [*weight_offload_entries(shares, learning, parts), *_packed_entries(shares)]
    each = sum(rounded(width * share(p.numel, ranks)) for p in frozen if p.itemsize == width)
    return [
        Entry(
            component="weights",
            name="partition of the trainable weights",
            bytes=width * shares.partition,
            formula=f"{width} · {shares.trainable:,} parameters / {ranks} ranks",
            source=SOURCE,
            state=True,
        ),
        Entry(
            component="weights",
            name="partitions of the frozen weights",
            bytes=each if shares.inventory.scale == 1 else width * parts,
            formula=f"{width} · {parts:,} elements, a tensor for each weight",
            source=f"{DS}/zero/partition_parameters.py _partition_param",
            state=True,
        ),
        *_packed_entries(shares),
    ]


def _packed_entries(shares: Shares) -> list[Entry]:
    """Quantized weights: the codes are divided, their scales are on every rank."""
    config, codes, scales = shares.config, 0.0, 0.0
    per_code = 1.0 if config.quantization == "int8" else 0.5
    for weight in shares.inventory.packed():
        inputs, outputs = weight.shape[1], weight.shape[0]
        total = packed_bytes(config.quantization, inputs, outputs, double=config.double_quant)
        codes += per_code * weight.numel * weight.count
        scales += (total - per_code * weight.numel) * weight.count
    if not codes:
        return []
    scale = shares.inventory.scale
    return [
        Entry(
            component="weights",
            name=f"frozen weights in {config.quantization}: partition of the codes, all scales",
            bytes=round((codes / shares.ranks + scales) * scale),
            formula=f"{codes * scale:,.0f} / {shares.ranks} + {scales * scale:,.0f} bytes",
            source=SOURCES[config.quantization],
            state=True,
        )
    ]


def _state_entries(shares: Shares, groups: list[int]) -> list[Entry]:
    """fp32 master weights and optimizer states, in fp32 training too.

    The weights are not their own masters: ``_create_fp32_partitions`` compares their device with
    a string, which is never equal.
    """
    states = shares.states(shares.partition)
    largest = max(groups, default=0)
    step = shares.states(largest).step
    ranks = shares.ranks
    padding = sum(groups) - shares.partition
    each = 3 * FP32 + shares.width + shares.grad_width
    return [
        Entry(
            component="master_weights",
            name="fp32 master weights of the partition",
            bytes=FP32 * shares.partition,
            formula=f"4 · {shares.trainable:,} parameters / {ranks} ranks",
            source=SOURCE,
            state=True,
        ),
        Entry(
            component="optimizer_states",
            name="optimizer states of the partition",
            bytes=states.nbytes,
            formula=f"{states.formula}, {shares.trainable:,} parameters / {ranks} ranks",
            source=states.source,
            state=True,
        ),
        Entry(
            component="temporaries",
            name="temporaries of the optimizer beyond the gradient copy it no longer needs",
            bytes=max(0, step - (shares.grad_width * largest if shares.grad_width < FP32 else 0)),
            formula=states.step_formula,
            source=states.source,
            alive=frozenset({OPTIMIZER_STEP}),
        ),
        Entry(
            component="buffers",
            name="padding of every weight's partition",
            bytes=max(0, padding) * each,
            formula=f"{max(0, padding):,} elements · {each} bytes",
            source=f"{DS}/zero/partition_parameters.py _aligned_size",
        ),
    ]


def _gradient_entries(shares: Shares, groups: list[int]) -> list[Entry]:
    """Gradients of the partition, always there; copies of one sub-group at the update."""
    largest, wide = max(groups, default=0), shares.grad_width
    part = max((share(piece.numel, shares.ranks) for piece in shares.trained), default=0)
    overflow = 0
    if shares.config.precision == "fp16":
        overflow = (wide + 1) * shares.partition
    return [
        Entry(
            component="gradients",
            name="gradients of the partition",
            bytes=wide * shares.partition,
            formula=f"{wide} · {shares.trainable:,} parameters / {shares.ranks} ranks",
            source=f"{SOURCE} grad_partitions_flat_buffer",
            state=True,
        ),
        Entry(
            component="temporaries",
            name="fp64 copy of a gradient for its norm, or the search for overflow",
            bytes=max(FP64 * part, overflow),
            formula=f"8 · {part:,} elements",
            source=f"{SOURCE} get_grad_norm_direct, has_overflow",
            alive=frozenset({CLIPPING}),
        ),
        Entry(
            component="temporaries",
            name="flat copy of a sub-group's gradients",
            bytes=wide * largest if len(shares.trained) > 1 else 0,
            formula=f"{wide} · {largest:,} elements",
            source=f"{SOURCE} _prepare_fp32_grad_for_sub_group",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
        Entry(
            component="temporaries",
            name="fp32 copy of a sub-group's gradients",
            bytes=FP32 * largest if wide != FP32 else 0,
            formula=f"4 · {largest:,} elements",
            source=f"{SOURCE} _prepare_fp32_grad_for_sub_group",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]


def _gathered_entries(shares: Shares, largest: int) -> list[Entry]:
    """Small weights, whole from one update to the next, and those gathered for their modules."""
    if shares.ranks == 1 and shares.config.offload != "optimizer+params":
        return []
    resident = _resident(shares)
    kept = sum(_gathered_bytes(shares, shares.pieces[number]) for number in resident)
    peaks = gathered_peaks(shares)
    copies = 0 if shares.config.offload != "none" else _update_copies(shares, largest)
    found = [
        Entry(
            component="buffers",
            name="small weights kept whole",
            bytes=kept,
            formula=f"{len(resident):,} weights of at most "
            f"{shares.config.zero_sizes.stage3_param_persistence_threshold:,} elements",
            source=f"{DS}/zero/parameter_offload.py mark_persistent_parameters",
            alive=frozenset({*PASSES, REDUCTION}),
        ),
        Entry(
            component="buffers",
            name="small weights gathered again after the update, beyond its copies",
            bytes=max(0, kept - copies),
            formula=f"{kept:,} − {copies:,} bytes",
            source=f"{SOURCE} _post_step",
            alive=frozenset({OPTIMIZER_STEP}),
        ),
    ]
    for instant, nbytes in _by_instant(shares, peaks).items():
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


def _resident(shares: Shares) -> frozenset[int]:
    limit = shares.config.zero_sizes.stage3_param_persistence_threshold
    return frozenset(n for n, piece in enumerate(shares.pieces) if piece.numel <= limit)


def _gathered_bytes(shares: Shares, piece: Piece) -> int:
    return rounded(share(piece.numel, shares.ranks) * shares.ranks * piece.itemsize)


def gathered_peaks(shares: Shares) -> Peaks:
    """Most bytes gathered in every segment of the passes."""
    sizes = shares.config.zero_sizes
    limits = Limits(
        prefetch=sizes.stage3_prefetch_bucket_size,
        live=sizes.stage3_max_live_parameters,
        reuse=sizes.stage3_max_reuse_distance,
    )
    pieces = shares.pieces
    return _simulate(
        tuple(piece.numel for piece in pieces),
        tuple(_gathered_bytes(shares, piece) for piece in pieces),
        _resident(shares),
        limits,
        tuple(module_calls(shares, numbered(pieces))),
        shares.ranks > 1,
    )


@lru_cache(maxsize=256)
def _simulate(
    numels: tuple[int, ...],
    nbytes: tuple[int, ...],
    resident: frozenset[int],
    limits: Limits,
    calls: tuple[Call, ...],
    flat: bool,
) -> Peaks:
    return Gathering(
        numels=numels, nbytes=nbytes, resident=resident, limits=limits, calls=calls, flat=flat
    ).run()


def _by_instant(shares: Shares, peaks: Peaks) -> dict[str, int]:
    """How much more is alive in every instant than without gathering.

    The fullest segment may be another one than without: the largest sum of activations and
    gathered weights counts, less the activations that the instant shows already.
    """
    layers = [i for i, link in enumerate(shares.links) if link.segment.kind == "layer"]
    shown = moments(shares.links)
    best: dict[str, int] = {}
    for (direction, link, layer), nbytes in peaks.items():
        kind = shares.links[link].segment.kind
        if direction == "forward":
            instant = LOSS if kind == "head" else FORWARD
        elif kind == "layer":
            last = layer or link == layers[-1]
            instant = BACKWARD_LAST if last else BACKWARD_FIRST
        else:
            instant = LOSS_BACKWARD if kind == "head" else EMBEDDING_BACKWARD
        alive = _activations(shares, direction, link, layer)
        best[instant] = max(best.get(instant, 0), nbytes + alive)
    without = {
        instant: sum(moment.earlier.values()) + sum(moment.inside.values())
        for instant, moment in shown.items()
    }
    return {instant: max(0, best[instant] - without.get(instant, 0)) for instant in best}


def _activations(shares: Shares, direction: str, link: int, layer: int) -> int:
    """Bytes of activations at the fullest moment of one segment's pass."""
    cost = shares.links[link].cost
    inside = cost.forward if direction == "forward" else cost.backward
    return shares.kept[link] + layer * sum(cost.saved.values()) + sum(inside.values())


def _bucket_entries(shares: Shares) -> list[Entry]:
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
            source=f"{SOURCE} _setup_for_real_optimizer",
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
    arrival, ranks = shares.trained[::-1], shares.ranks
    single = ranks == 1 and shares.config.offload != "optimizer+params"
    peaks = {} if single else gathered_peaks(shares)
    host = shares.config.offload != "none"
    bucket = shares.config.zero_sizes.reduce_bucket_size
    for r in reductions([piece.numel for piece in arrival], bucket):
        within = arrival[r.first : r.end]
        at = arrival[r.end] if r.end < len(arrival) else None
        copied = shares.width * sum(share(p.numel, ranks) * ranks for p in within)
        if len(within) == 1 and within[0].numel % ranks == 0:
            copied = 0
        part = max(share(piece.numel, ranks) for piece in within)
        held = peaks.get(("backward", at.link, at.layer), 0) if at else 0
        held += FP64 * min(part, NORM_ELEMENTS) if host else 0
        yield Candidate(at=at, copied=copied, held=held)
