"""Kernels and losses that a model's class in transformers, or their library, does not have."""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator import choices
from vram_plan.estimator.config import TrainConfig


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


def refused_losses(config: TrainConfig) -> Iterator[str]:
    """Losses that join head and labels are written for decoders, whose labels are shifted."""
    model = config.model
    if config.loss in {"liger", "chunked"} and (model.is_encoder_decoder or not model.is_causal):
        yield (
            f"--loss {config.loss}: Liger-Kernel and TRL have it for decoders only, not for "
            f"{model.model_type}; choose hf or fused-ce"
        )
