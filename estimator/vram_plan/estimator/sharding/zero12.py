"""ZeRO stages 1 and 2: whole weights, divided master weights and optimizer states.

Stage 2 moves every gradient into a bucket as soon as it is there, and keeps those of its own
partition; stage 1 does the same once the backward pass is over (or at once with
``overlap_comm``). Either holds whole every weight's gradient that its partition cuts.
Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/stage_1_and_2.py``.

Left out: the flat copy of the weights made at initialisation (DeepSpeed makes it on the host
where the device has no room), and buffers of ``round_robin_gradients``.
"""

from __future__ import annotations

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import packed_entries, paged_entry
from vram_plan.estimator.sharding.zero_offload import flat_offload_entries
from vram_plan.estimator.sharding.zero_parts import DS, FP32, FP64, REDUCTION, Shares
from vram_plan.estimator.sharding.zero_reduce import bucket_entries, hooked, reached
from vram_plan.estimator.step import CLIPPING, OPTIMIZER_STEP, PASSES

SOURCE = f"{DS}/zero/stage_1_and_2.py"
STEP = (CLIPPING, OPTIMIZER_STEP)


def entries(shares: Shares) -> list[Entry]:
    """Every weight, gradient, state and buffer of stage 1 or 2."""
    return [*resident(shares), *bucket_entries(shares)]


def resident(shares: Shares) -> list[Entry]:
    """The same without the buckets of gradients."""
    found = weight_entries(shares)
    if shares.offloaded:
        found += flat_offload_entries(shares)
        found += [] if hooked(shares) else [_whole_gradients(shares, shares.trainable)]
    else:
        copies = shares.width * (shares.span + shares.partition)
        found += state_entries(shares, shares.partition, freed=copies)
        found += _gradient_entries(shares)
        found += _step_entries(shares)
    return found


def weight_entries(shares: Shares) -> list[Entry]:
    """The weights in the compute dtype, those that learn in one flat buffer."""
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
        paged_entry(states, shares.config),
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
    elif shares.config.grad_accum > 1 and wide == width and (during := frozenset(reached(shares))):
        found.append(_second_partition(shares, during))
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
    return frozenset({*STEP, *(reached(shares) if hooked(shares) else ())})


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


def _second_partition(shares: Shares, during: frozenset[str]) -> Entry:
    """Stage 2: a micro-batch's partition, before it is added to that of the earlier ones.

    Where all gradients fit into one bucket, nothing is reduced ``during`` the backward pass.
    """
    return Entry(
        component="temporaries",
        name="gradients of the partition of one micro-batch",
        bytes=shares.width * shares.span,
        formula=f"{shares.width} · {shares.span:,} elements, added at the end of its backward pass",
        source=f"{SOURCE} independent_gradient_partition_epilogue",
        alive=during,
    )


def _step_entries(shares: Shares) -> list[Entry]:
    """Clipping computes norms in fp64; the update reads an fp32 copy of the gradients."""
    flat = shares.width * shares.partition
    wide = shares.grad_width == FP32
    norm = FP64 * min(shares.largest, shares.partition)
    if shares.grad_width == shares.width:
        norm = max(0, shares.norms - shares.width * shares.span)
    return [
        Entry(
            component="temporaries",
            name="fp64 copy of a gradient for its norm, on the rank that is the fullest then",
            bytes=norm,
            formula=f"{norm:,} bytes beyond the gradients of the largest partition",
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
