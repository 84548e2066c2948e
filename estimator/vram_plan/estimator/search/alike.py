"""Configurations whose passes are alike, so that one tape stands for many.

How states are sharded changes what travels and what is held beside the passes; checkpoints that
wait in host memory are computed like those that stay. Where ZeRO 3 recomputes, a product or two
more run again than without it (its linear saves when its output is there), which floors leave out.
A test holds all of it to the tapes themselves.
"""

from __future__ import annotations

from typing import Any

from vram_plan.estimator.choices import WHOLE_MODEL
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.rank import Passes, run_passes
from vram_plan.estimator.search.variant import varied
from vram_plan.estimator.speed.fp8 import in_16_bits


def undivided(config: TrainConfig) -> TrainConfig:
    """The same passes with whole states: they save no more than with divided ones."""
    changes: dict[str, Any] = {}
    if config.zero == 3:
        changes["zero"] = 0  # stage 3 keeps inputs of frozen layers
    if config.method in WHOLE_MODEL and config.adapter_dtype != "fp32":
        changes["adapter_dtype"] = "fp32"  # there are no adapters
    return varied(config, **changes) if changes else config


def staying(config: TrainConfig) -> TrainConfig:
    """The same kernels with checkpoints that stay on the device, states whole, in 16 bits.

    What a decoder's blocks read of the encoder is fetched again, which makes kernels of its own.
    """
    found = undivided(in_16_bits(config))
    if found.checkpointing != "offload" or found.model.is_encoder_decoder:
        return found
    return varied(found, checkpointing="full")


def passes_of(config: TrainConfig, micro_batch: int) -> Passes:
    """One micro-batch, forward and back."""
    one = varied(config, micro_batch=micro_batch)
    return run_passes(one, keeps_gradients=config.grad_accum == 1)
