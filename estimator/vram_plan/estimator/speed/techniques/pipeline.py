"""Pipeline stages: hidden states to the next stage, their gradients to the one before.

A stage sends one message a micro-batch and chunk each way; with tensor and sequence parallelism it
is divided by the tensor ranks. The steady state of 1F1B waits for one message before each forward
and each backward pass (``megatron/core/pipeline_parallel/schedules.py`` @ d98e8a64); the
interleaved schedule sends while it computes (``--no-overlap-p2p-communication`` turns that off).
Layers spread by a device map run one stage after the other, and every message is waited for.
"""

from __future__ import annotations

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.links import group_of
from vram_plan.estimator.speed.payload import collective, hidden_bytes
from vram_plan.estimator.speed.transfer import Transfer


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """Messages of one stage, or of all where they run one after the other."""
    if config.pp == 1:
        return ()
    stride = config.gpus // config.pp
    pair = group_of(config, config.pp, stride=stride)
    split = config.tp if config.sequence_parallel else 1
    messages = config.grad_accum * config.virtual_pipeline
    if config.pp_schedule == "naive":
        messages = config.grad_accum * (config.pp - 1)
    pieces = [(hidden_bytes(config) / split, messages)]
    hides = config.pp_schedule == "interleaved"
    return (
        collective(
            "hidden states to the next stage",
            "point-to-point",
            pieces,
            pair,
            overlaps="forward" if hides else None,
        ),
        collective(
            "gradients to the stage before",
            "point-to-point",
            pieces,
            pair,
            overlaps="backward" if hides else None,
        ),
    )
