"""Everything that travels in one optimizer step on the fullest rank.

What each technique sends is in ``techniques``, what goes to the host and back in ``offload``. Not
here: NCCL's use of the GPU's own bandwidth and processors, which slows down what it hides behind.
"""

from __future__ import annotations

from importlib import import_module

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.offload import offload_transfers
from vram_plan.estimator.speed.techniques import context, experts, pipeline, tensor
from vram_plan.estimator.speed.transfer import NotModelled, Transfer

__all__ = ["NotModelled", "Transfer", "of_data", "of_splits", "transfers"]

_DATA = {
    "ddp": "ddp",
    "deepspeed": "zero",
    "megatron-deepspeed": "zero",
    "internevo": "zero",
    "colossalai": "zero",
    "fsdp1": "fsdp",
    "fsdp2": "fsdp",
    "megatron": "megatron",
    "nanotron": "megatron",
}
"""Engine → file of ``techniques`` with what its data-parallel ranks exchange."""
_SPLITS = (tensor, pipeline, context, experts)


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """All transfers of an optimizer step; none for inference or on a single GPU.

    Raises:
        NotModelled: no GPU was named, or the catalogue lacks a rate that is needed.
    """
    if not config.training:
        return ()
    return (*of_data(config), *of_splits(config), *offload_transfers(config))


def of_data(config: TrainConfig) -> tuple[Transfer, ...]:
    """What data-parallel ranks exchange: weights and gradients, whatever the micro-batch."""
    if config.gpus == 1 or config.engine not in _DATA:
        return ()
    name = f"vram_plan.estimator.speed.techniques.{_DATA[config.engine]}"
    return tuple(import_module(name).transfers(config))


def of_splits(config: TrainConfig) -> tuple[Transfer, ...]:
    """What tensor, pipeline, context and expert ranks exchange: bytes of the micro-batch."""
    if config.gpus == 1:
        return ()
    return tuple(one for split in _SPLITS for one in split.transfers(config))
