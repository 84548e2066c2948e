"""What one rank runs: the chain of segments it holds and its inventory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module

from vram_plan.estimator.blocks.registry import compose
from vram_plan.estimator.chain import Link, Shape, build_chain, named_bytes
from vram_plan.estimator.choices import (
    BITSANDBYTES,
    BYTES,
    COMPILED_KERNELS,
    LITGPT_METHODS,
    MEGATRON_BLOCKS,
    WHOLE_MODEL,
)
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fp8 import casting
from vram_plan.estimator.inventory import Inventory, take_inventory
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.methods.registry import make_method
from vram_plan.estimator.ops.quantized import FourBit
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.shared import shared_bytes
from vram_plan.estimator.step import gradient_bytes, pass_entries
from vram_plan.estimator.tensors import rounded
from vram_plan.estimator.treatment import Treatment
from vram_plan.profiles import megatron_switches, switches
from vram_plan.profiles.model import ModelSpec

_AUTHORS = frozenset({"litgpt"})
"""Training loops with modules of their own (``blocks/<loop>.py``)."""
_OWN_PRODUCTS = frozenset({"gpt2", "falcon"})
"""Models whose blocks do not call ``torch.nn.functional.linear``: ``Conv1D``, ``FalconLinear``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The forward and backward pass of one micro-batch on one rank, before any sharding of states.

    Attributes:
        links: the segments with their costs.
        inventory: the weights.
        entries: ledger entries of the passes.
        gradients: weight gradients the backward pass leaves.
        shared: bytes of tensors that every layer reads (cos, sin, masks) until the backward pass.
        opened: bytes of those among them that only some layers read: their entries are the links'.
        passing: bytes of those that nothing saves: they end when the model's forward returns.
        buffers: bytes of the model's own tensors that are no weights.
        inputs: bytes of token ids and labels.
        host: bytes of activations waiting in host memory at the end of the forward pass.
    """

    links: tuple[Link, ...]
    inventory: Inventory
    entries: tuple[Entry, ...]
    gradients: int
    shared: int
    opened: int
    passing: int
    buffers: int
    inputs: int
    host: int


def treat(config: TrainConfig) -> Treatment:
    """What the configuration decides about every module."""
    compute = config.weights_bytes if _keeps_dtype(config) else config.compute_bytes
    eight = casting(config)
    return Treatment(
        method=make_method(config),
        compute_bytes=compute,
        adapter_bytes=compute if _casts_adapters(config) else BYTES[config.adapter_dtype],
        weights_bytes=1 if eight and eight.primary else compute,
        norm_bytes=4 if config.kbit_preparation and not _gathers_low(config) else compute,
        # FSDP 2 casts what it gathers and leaves buffers as they were loaded.
        buffer_bytes=config.weights_bytes if config.engine == "fsdp2" else compute,
        autocast=config.autocast,
        half=config.precision == "fp16",
        eight=eight,
        quantization=config.quantization,
        double_quant=config.double_quant,
        matmul_bytes=config.compute_bytes,
        attention=config.attention,
        attention_density=config.attention_density,
        loss=config.loss,
        loss_code=switches.loss_code(config.stack, config.model.model_type),
        table_bytes=_table_bytes(config),
        stacked_experts=switches.stacks_experts(config.stack),
        packs_subclasses=switches.packs_subclasses(config.stack),
        four_bit=FourBit(
            keeps_input=config.quantization in BITSANDBYTES
            and switches.keeps_four_bit_input(config.stack),
            origin_bytes=_origin_bytes(config),
            fuses=switches.fuses_four_bit(config.stack),
        ),
        repeats_heads=switches.repeats_heads(
            config.stack, config.model.model_type, config.attention
        ),
        reentrant=switches.reentrant_checkpoints(config.stack),
        widens_outputs=config.autocast and switches.widens_outputs(config.stack),
        keeps_outputs=switches.keeps_outputs(config.stack),
        keeps_presents=switches.keeps_presents(config.stack, config.model.model_type),
        lora_dropout=config.lora_dropout,
        tensor=config.tp,
        expert=config.ep,
        expert_tensor=megatron_switches.expert_tensor_ranks(config.stack, config.tp),
        groups_experts=megatron_switches.groups_experts(config.stack),
        exchanges_tokens=megatron_switches.exchanges_tokens(config.stack),
        sequence_parallel=config.sequence_parallel,
        alternates=switches.alternates_products(config.stack),
        compiled=bool(config.compile),
        recomputes_core=_recomputes_core(config),
        fused=_fused(config),
        keeps_inputs=config.zero == 3 and config.model.model_type not in _OWN_PRODUCTS,
        keeps_head_input=config.zero == 3,
        leaves=config.zero == 3,
        training=config.training,
    )


def _gathers_low(config: TrainConfig) -> bool:
    """FSDP's mixed precision computes in the gathered weights' dtype, whatever the shards have.

    DeepSpeed casts every weight when it starts (0.19.8 ``runtime/engine.py``
    ``_configure_distributed_model``).
    """
    if config.engine in {"fsdp2", "deepspeed"}:
        return config.precision != "fp32"
    return config.engine == "fsdp1" and config.precision != config.weights_dtype


def _origin_bytes(config: TrainConfig) -> int:
    """Of the dtype that 4-bit weights were quantized from, where products have another."""
    origin = "fp16" if switches.recasts_four_bit(config.stack) else config.weights_dtype
    return BYTES[origin] if origin != config.compute_dtype else 0


def _fused(config: TrainConfig) -> frozenset[str]:
    """Kernels in place of written-out operations: those asked for, those a compiler makes.

    The compiler's partition saves what a block's products read and the kernels' inputs (torch
    2.13.0 ``torch/_functorch/partitioners.py`` min-cut), as hand-written ones do.
    """
    kernels = frozenset(config.fused_kernels)
    if config.compile:
        kernels |= COMPILED_KERNELS
    if "lora" in kernels and switches.fuses_all(config.stack):
        kernels |= {"rmsnorm", "rope"}
    return kernels


def _keeps_dtype(config: TrainConfig) -> bool:
    """Activations are in the weights' dtype, unless a sharding engine casts what it gathers."""
    return config.autocast and config.engine not in {"fsdp1", "fsdp2"}


def _casts_adapters(config: TrainConfig) -> bool:
    """FSDP2 gathers in the compute dtype; FSDP1 where mixed precision is on."""
    return config.engine == "fsdp2" or (config.engine == "fsdp1" and config.autocast)


def _table_bytes(config: TrainConfig) -> int:
    """TRL casts embeddings and head back after the preparation."""
    back = config.kbit_preparation and switches.narrows_tables(config.stack)
    return config.compute_bytes if back and config.precision == "bf16" else 0


def run_passes(config: TrainConfig, *, keeps_gradients: bool) -> Passes:
    """Simulate one micro-batch; prompts make what the first stack reads longer."""
    how = treat(config)
    target, source = config.seq_len, config.source_len
    if source:
        source += how.method.virtual_tokens
    else:
        target += how.method.virtual_tokens
    shape = Shape(
        batch=config.micro_batch,
        seq=-(-target // config.cp),
        source_seq=-(-source // config.cp),
        checkpoint=_checkpoint(config),
        keeps_gradients=keeps_gradients,
    )
    return _run_passes(config.model, how, shape, _author(config))


def _checkpoint(config: TrainConfig) -> str:
    if not config.training:
        return "none"
    if _recomputes_core(config):
        return "none"  # the block does it itself
    return "page-out" if config.offload == "activations" else config.checkpointing


def _recomputes_core(config: TrainConfig) -> bool:
    """Megatron's selective recomputation is that of core attention alone."""
    return config.checkpointing == "selective" and config.engine in MEGATRON_BLOCKS


@lru_cache(maxsize=1024)
def _run_passes(model: ModelSpec, how: Treatment, shape: Shape, author: str = "") -> Passes:
    composition = _compose(model, author)
    links = build_chain(model, composition, how, shape)
    shared, named = shared_bytes(model, composition, how, shape), named_bytes(links)
    return Passes(
        links=links,
        inventory=replace(take_inventory(links), scale=_scale(model)),
        entries=tuple(pass_entries(links)),
        gradients=gradient_bytes(links),
        shared=shared.kept,
        opened=sum(link.opened for link in links),
        passing=shared.passing + named,
        buffers=shared.buffers,
        inputs=rounded(8 * shape.batch * (shape.seq + shape.source_seq)),
        host=sum(link.cost.host * link.count for link in links),
    )


def beside_named(passes: Passes) -> int:
    """``passing`` without what a segment has made: in a timeline that is the segment's storage."""
    return passes.passing - named_bytes(passes.links)


@lru_cache(maxsize=64)
def _scale(model: ModelSpec) -> float:
    """Nominal size of a size class over the parameters of its representative shape; else 1."""
    if model.nominal_parameters is None:
        return 1.0
    links = build_chain(model, compose(model), Treatment(), Shape(batch=1, seq=1))
    return model.nominal_parameters / take_inventory(links).numel(added=False)


def _author(config: TrainConfig) -> str:
    """Whose modules run: transformers' (empty), Megatron-LM's or those of a training loop."""
    if config.engine in MEGATRON_BLOCKS and config.method in WHOLE_MODEL:
        sparse = "megatron_experts" if config.model.num_experts else "megatron"
        return "bigscience" if config.engine == "megatron-deepspeed" else sparse
    if config.method in LITGPT_METHODS:
        return "litgpt"
    return config.stack.loop if config.stack.loop in _AUTHORS else ""


def _compose(model: ModelSpec, author: str) -> Composition:
    """The library's composition; an author's own for the architectures it is written for."""
    if author:
        own = import_module(f"vram_plan.estimator.blocks.{author}")
        if own.is_built(model):
            composition: Composition = own.compose(model)
            return composition
    return compose(model)
