"""ZeRO stage 3: everything divided; weights are gathered module by module.

Source: DeepSpeed 0.19.8 ``deepspeed/runtime/zero/stage3.py``, ``partition_parameters.py``,
``parameter_offload.py``. The weights are divided as they are loaded (``deepspeed.zero.Init``,
which transformers' ``from_pretrained`` uses), so initialisation needs less than the step.
"""

from __future__ import annotations

from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.quantization import SOURCES, packed_bytes
from vram_plan.estimator.sharding.base import paged_entry
from vram_plan.estimator.sharding.zero3_gathered import bucket_entries, gathered_entries
from vram_plan.estimator.sharding.zero_offload import (
    divided_offload_entries,
    weight_offload_entries,
)
from vram_plan.estimator.sharding.zero_parts import DS, FP32, FP64, Shares, rounded, share
from vram_plan.estimator.step import CLIPPING, OPTIMIZER_STEP

SOURCE = f"{DS}/zero/stage3.py"


def entries(shares: Shares) -> list[Entry]:
    """Every weight, gradient, state, buffer and gathered weight of stage 3."""
    return [*resident(shares), *bucket_entries(shares)]


def resident(shares: Shares) -> list[Entry]:
    """The same without the buckets of gradients."""
    groups = sub_groups(shares)
    found = _weight_entries(shares)
    if shares.offloaded:
        found += divided_offload_entries(shares, groups)
    else:
        found += _state_entries(shares, groups)
        found += _gradient_entries(shares, groups)
    return [*found, *gathered_entries(shares, max(groups, default=0))]


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
    """Quantized weights: the codes are divided, their scales are on every rank.

    Of 8-bit ones every rank holds the whole codes too: the layer's state refers to them, and its
    forward pass puts them in the place of gathered ones (bitsandbytes 0.50.2
    ``bitsandbytes/nn/modules.py`` Linear8bitLt.init_8bit_state, forward).
    """
    config, codes, scales = shares.config, 0.0, 0.0
    per_code = 1.0 if config.quantization == "int8" else 0.5
    for weight in shares.inventory.packed():
        inputs, outputs = weight.shape[1], weight.shape[0]
        total = packed_bytes(
            config.quantization,
            inputs,
            outputs,
            double=config.double_quant,
            group=config.gptq_group_size,
        )
        codes += per_code * weight.numel * weight.count
        scales += (total - per_code * weight.numel) * weight.count
    if not codes:
        return []
    scale = shares.inventory.scale
    whole = scales + (codes if config.quantization == "int8" else 0)
    kept = "codes" if config.quantization == "int8" else "scales"
    return [
        Entry(
            component="weights",
            name=f"frozen weights in {config.quantization}: partition of the codes, all {kept}",
            bytes=round((codes / shares.ranks + whole) * scale),
            formula=f"{codes * scale:,.0f} / {shares.ranks} + {whole * scale:,.0f} bytes",
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
        paged_entry(states, shares.config),
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
