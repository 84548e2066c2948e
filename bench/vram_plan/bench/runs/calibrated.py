"""The step time that ``bench calibrate``'s profile of this machine predicts for a run on it."""

from __future__ import annotations

from dataclasses import replace

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.step_time import step_time
from vram_plan.profiles.gpus import GpuSpec, find_gpu
from vram_plan.profiles.machine import read_machine
from vram_plan.profiles.nodes import default_node

__all__ = ["CALIBRATED", "calibrated_seconds"]

CALIBRATED = "the step time is predicted with this machine's profile (bench calibrate)"
_PROCESSOR = "CPU"
"""Architecture of a profile that was measured on a processor."""


def calibrated_seconds(config: TrainConfig, device: str, gpu: str | None) -> float | None:
    """Seconds of a step; None without a profile of this device, or where it is not modelled.

    Args:
        config: what is run.
        device: ``cpu`` or ``cuda``.
        gpu: the catalogue's name of the card here, where it has one.
    """
    try:
        machine = read_machine()
    except ValueError:
        return None
    if not _describes(machine.gpu, device, gpu):
        return None
    node = config.node if device == "cuda" else None
    node = node or default_node(machine.gpu, config.gpus_per_node)
    found = step_time(replace(config, gpu=machine.gpu, node=node), machine.curves)
    return found.seconds if found else None


def _describes(measured: GpuSpec, device: str, gpu: str | None) -> bool:
    """Whether a profile is of the device that is run on, and not of a card that was there before.

    A profile keeps the catalogue's figures of its card, but not its name.
    """
    if device == "cpu" or measured.architecture == _PROCESSOR:
        return device == "cpu" and measured.architecture == _PROCESSOR
    if gpu is None:
        return False
    card = find_gpu(gpu)
    return (card.architecture, card.usable_bytes, card.memory_bandwidth_bytes_per_s) == (
        measured.architecture,
        measured.usable_bytes,
        measured.memory_bandwidth_bytes_per_s,
    )
