"""Megatron-LM: 16-bit weights, one fp32 gradient buffer, fp32 masters and moments over data ranks.

Megatron-LM @ d98e8a64 ``megatron/core/distributed/param_and_grad_buffer.py``,
``megatron/core/optimizer/distrib_optimizer.py``. ``--use-distributed-optimizer`` is on unless
``--zero 0`` says otherwise: data and context ranks divide masters and moments; experts' are divided
by the ranks that hold the same ones. Nanotron accumulates in fp32 and divides its masters alike
(``nanotron/optim/gradient_accumulator.py`` ``FP32GradientAccumulator``, ``optim/zero.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from vram_plan.estimator.blocks import megatron, megatron_experts
from vram_plan.estimator.choices import BYTES
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import Rank, clipping_entry, weights_entries
from vram_plan.estimator.sharding.fp8_weights import cached_copies, engine_state
from vram_plan.estimator.sharding.megatron_fsdp import fsdp_entries
from vram_plan.estimator.step import PASSES
from vram_plan.profiles.megatron_switches import (
    exchanges_tokens,
    expert_tensor_ranks,
    groups_experts,
    overlaps_tensor_ranks,
)

BUFFER = "Megatron-LM megatron/core/distributed/param_and_grad_buffer.py"
OPTIMIZER = "Megatron-LM megatron/core/optimizer/distrib_optimizer.py"
MEMORY = "Megatron-LM megatron/core/utils.py GlobalMemoryBuffer"
WORKSPACE = "TransformerEngine transformer_engine/pytorch/module/base.py"
FP32_BYTES = 4
MIB = 1 << 20
ENGINE_WORKSPACE = (4 * MIB, 32 * MIB)
"""Transformer Engine's own workspace for cuBLAS: before Hopper, and from Hopper on."""
OVERLAPPED = 3
"""Streams of overlapped products (``_NUM_MAX_UB_STREAMS``)."""
GROUPED = 4
"""Streams of grouped products (``util/multi_stream.cpp`` ``num_compute_streams``)."""
_BEFORE_HOPPER = frozenset({"ampere", "ada", "turing", "volta", "pascal"})
_MOMENTS = {"adamw": 2, "adamw-fused": 2, "sgd-momentum": 1, "sgd": 0}


def keeps_gradients(config: TrainConfig) -> bool:
    """Every gradient is added to the main gradients and freed."""
    return False


def entries(rank: Rank) -> list[Entry]:
    """Weights, main gradients, masters and moments, and the buffers that stay."""
    if rank.config.fsdp:
        return [*fsdp_entries(rank), *engine_state(rank, 0), *_buffers(rank)]
    return [
        *weights_entries(rank),
        _main_gradients(rank),
        *cached_copies(rank),
        *engine_state(rank, 0),
        *_optimizer(rank),
        clipping_entry(rank),
        *_buffers(rank),
    ]


def _numel(weights: Iterable[Weight], scale: float, *, experts: bool) -> float:
    """Elements that learn, of experts or of all else."""
    return sum(
        w.numel * w.count * (1.0 if w.added else scale)
        for w in weights
        if w.trainable and ("experts" in w.name) == experts
    )


def _main_gradients(rank: Rank) -> Entry:
    return Entry(
        component="gradients",
        name="main gradients",
        bytes=FP32_BYTES * rank.trainable,
        formula=f"{FP32_BYTES} bytes (fp32) · {rank.trainable:,} parameters in one buffer",
        source=BUFFER,
        state=True,
    )


def dividing_ranks(config: TrainConfig) -> int:
    """Ranks that divide masters, moments and the update: the distributed optimizer's."""
    return 1 if config.zero == 0 else config.shard_ranks


def _optimizer(rank: Rank) -> list[Entry]:
    config, inventory = rank.config, rank.passes.inventory
    ranks = dividing_ranks(config)
    scale = inventory.scale
    dense = _numel(inventory.weights, scale, experts=False)
    sparse = _numel(inventory.weights, scale, experts=True)
    own = -(-dense // ranks) + -(-sparse // max(1, _expert_copies(config, ranks)))
    shared = f"{dense + sparse:,.0f} parameters / {ranks} data-parallel ranks"
    moments = _MOMENTS.get(config.optimizer, 2)
    masters, state = _master_bytes(config), BYTES[config.state_dtype]
    return [
        Entry(
            component="master_weights",
            name="fp32 master weights" if masters != 2 else "remainders of fp32 master weights",
            bytes=round(masters * own),
            formula=f"{masters} bytes · {shared}",
            source=OPTIMIZER,
            state=True,
        ),
        Entry(
            component="optimizer_states",
            name="optimizer states",
            bytes=round(state * moments * own),
            formula=f"{moments} {config.state_dtype} moments · {shared}",
            source=OPTIMIZER,
            state=True,
        ),
    ]


def _expert_copies(config: TrainConfig, ranks: int) -> int:
    """Ranks that hold the same experts, of ``ranks`` data-parallel ones and their tensor ranks."""
    divided = config.ep * expert_tensor_ranks(config.stack, config.tp)
    return ranks * config.tp // divided


def _master_bytes(config: TrainConfig) -> int:
    """Bytes of a master weight beside the weight.

    ``--use-precision-aware-optimizer`` has Transformer Engine keep the 16 bits that a bf16 weight
    lacks (``store_param_remainders``), unless Megatron-LM keeps masters itself, as for recipes of
    fp8 but delayed scaling (``megatron/core/optimizer/optimizer_config.py``
    ``use_precision_aware_optimizer_no_fp8_or_ds_fp8``).
    """
    if config.weights_bytes == FP32_BYTES:
        return 0
    aware = config.state_dtype != "fp32" and config.weights_dtype == "bf16"
    itself = config.precision == "fp8" and config.fp8_recipe != "te-delayed"
    return FP32_BYTES // 2 if aware and not itself else FP32_BYTES


def before_hopper(config: TrainConfig) -> bool:
    """Whether a GPU is named that Transformer Engine takes a small workspace on."""
    return config.gpu is not None and config.gpu.architecture.lower() in _BEFORE_HOPPER


def engine_workspace(config: TrainConfig) -> int:
    """Bytes of Transformer Engine's own workspace."""
    return ENGINE_WORKSPACE[0 if before_hopper(config) else 1]


def _buffers(rank: Rank) -> list[Entry]:
    config = rank.config
    sparse = megatron_experts.is_built(config.model)
    if config.engine != "megatron" or not (sparse or megatron.is_built(config.model)):
        return []
    size = engine_workspace(config)
    found = [
        Entry(
            component="buffers",
            name="cuBLAS workspace of Transformer Engine",
            bytes=size,
            formula=f"{size // MIB} MiB",
            source=WORKSPACE,
        )
    ]
    if sparse and groups_experts(config.stack):
        found.append(
            Entry(
                component="buffers",
                name="cuBLAS workspaces of grouped products",
                bytes=GROUPED * size,
                formula=f"{GROUPED} streams · {size // MIB} MiB",
                source="TransformerEngine transformer_engine/pytorch/cpp_extensions/gemm.py",
            )
        )
    if overlaps_tensor_ranks(config.stack) and config.sequence_parallel and config.tp > 1:
        found.append(
            Entry(
                component="buffers",
                name="cuBLAS workspaces of overlapped products",
                bytes=OVERLAPPED * size,
                formula=f"{OVERLAPPED} streams · {size // MIB} MiB; what is exchanged is "
                "outside the allocator",
                source="TransformerEngine transformer_engine/pytorch/cpp_extensions/gemm.py",
            )
        )
    tokens = config.micro_batch * -(-config.seq_len // config.cp)
    if sparse and config.ep * config.tp > 1 and not exchanges_tokens(config.stack):
        ranks = config.ep * expert_tensor_ranks(config.stack, config.tp)
        found.append(_gathered(config, "gathered input of experts", tokens * ranks // config.tp))
    elif config.sequence_parallel and config.tp > 1 and _has_head(rank):
        found.append(_gathered(config, "gathered input of the head", tokens))
    if config.cp > 1:
        found.append(_ring(rank))
    return found


def _gathered(config: TrainConfig, name: str, tokens: int) -> Entry:
    """One buffer under one name, as large as what was ever asked of it."""
    width = config.model.hidden_size * config.compute_bytes
    return Entry(
        component="buffers",
        name=name,
        bytes=tokens * width,
        formula=f"{tokens:,} tokens · {width:,} bytes, kept for reuse",
        source=MEMORY,
    )


def _has_head(rank: Rank) -> bool:
    return any(link.segment.kind == "head" for link in rank.passes.links)


def _ring(rank: Rank) -> Entry:
    """Keys and values on their way around the ring: what arrives beside what is used."""
    config, model = rank.config, rank.config.model
    tokens = config.micro_batch * -(-config.seq_len // config.cp)
    width = 2 * model.kv_dim // config.tp * config.compute_bytes
    return Entry(
        component="buffers",
        name="keys and values exchanged by context parallelism",
        bytes=2 * tokens * width,
        formula=f"2 · {tokens:,} tokens · {width:,} bytes of keys and values",
        source="arXiv:2310.01889 section 3 (ring attention)",
        alive=frozenset(PASSES),
    )
