"""Kernels and losses that a model's class in transformers, or their library, does not have."""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig

_ONE_BIAS = frozenset({"t5", "mt5"})
"""Models whose first block makes the position bias of all blocks."""


def refused_kernels(config: TrainConfig) -> Iterator[str]:
    """Attention kernels that the model's class in transformers does not have."""
    family, kernel = config.model.model_type, config.attention
    if config.fused_kernels and family not in choices.FUSED_FAMILIES:
        planned = ", ".join(sorted(choices.FUSED_FAMILIES))
        yield f"--fused-kernels is planned for {planned} only, not for {family}; leave it out"
    if config.engine in choices.MEGATRON_BLOCKS:
        return
    if family in choices.EAGER_ONLY and kernel != "eager":
        yield f"--attention {kernel}: transformers' {family} has eager attention only; choose eager"
    if family in choices.WITHOUT_FLASH and kernel in {"flash", "block-sparse"}:
        yield f"--attention {kernel}: transformers' {family} lacks it; choose sdpa or eager"
    if family in choices.WITHOUT_CHECKPOINTING and config.checkpointing != "none":
        yield (
            f"--checkpointing {config.checkpointing}: transformers cannot checkpoint {family}; "
            "choose none"
        )
    if family in choices.WITHOUT_SDPA and kernel == "sdpa":
        yield f"--attention sdpa: transformers' {family} lacks it; choose flash or eager"
    if family in _ONE_BIAS and config.quantization != "none" and config.autocast:
        yield from _casts_again(config)


def _casts_again(config: TrainConfig) -> Iterator[str]:
    """Torch 2.13.0 ``_CachedTorchDispatchMode``: a second pass with more casts than the first.

    Seen on real CPU tensors with transformers 5.23.0 and bitsandbytes 0.50.2.
    """
    if config.checkpointing == "selective" and config.attention == "sdpa":
        yield (
            f"--checkpointing selective with --attention sdpa: torch fails on a quantized "
            f"{config.model.model_type} under autocast; choose eager, or --checkpointing full"
        )


def refused_losses(config: TrainConfig) -> Iterator[str]:
    """Losses that join head and labels are written for decoders, whose labels are shifted."""
    model = config.model
    if config.loss in {"liger", "chunked"} and (model.is_encoder_decoder or not model.is_causal):
        yield (
            f"--loss {config.loss}: Liger-Kernel and TRL have it for decoders only, not for "
            f"{model.model_type}; choose hf or fused-ce"
        )


def refused_by_megatron(config: TrainConfig) -> Iterator[str]:
    """Optimizers that Megatron-LM lacks; 16-bit moments, which it alone has.

    ``--use-precision-aware-optimizer``, ``--exp-avg-dtype``.
    """
    name, megatron = config.optimizer, config.engine == "megatron"
    if megatron and name not in {"adamw", "adamw-fused", "sgd-momentum", "sgd"}:
        yield f"--optimizer {name} with --engine megatron: Megatron-LM has adam and sgd"
    if megatron and config.fsdp:
        yield from _refused_shards(config)
    if config.state_dtype == "fp32":
        return
    asked = f"--state-dtype {config.state_dtype}"
    if config.state_dtype not in choices.STATE_DTYPES:
        yield f"{asked}: choose from {', '.join(choices.STATE_DTYPES)}"
    elif not megatron:
        yield f"{asked} with --engine {config.engine}: Megatron-LM alone has it; choose fp32"
    elif config.zero == 0 or name not in {"adamw", "adamw-fused"}:
        yield f"{asked} needs --optimizer adamw and the distributed optimizer: drop --zero 0"


def _refused_shards(config: TrainConfig) -> Iterator[str]:
    """What Megatron-FSDP is not planned with."""
    asked = f"--fsdp {config.fsdp} with --engine megatron"
    if config.fsdp == "hybrid-shard":
        yield f"{asked}: choose full-shard or grad-op"
    if config.zero is not None:
        yield f"{asked}: shards are divided by Megatron-FSDP; drop --zero {config.zero}"
    if config.pp > 1 or config.ep > 1:
        yield f"{asked} is planned without pipeline and expert ranks: choose --pp 1 --ep 1"
    if config.precision == "fp8" and config.weights_dtype != "fp8":
        yield f"{asked} and --precision fp8 gathers 8 bits: choose --weights-dtype fp8"
