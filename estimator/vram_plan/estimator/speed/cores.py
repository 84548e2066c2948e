"""Ranks on a processor share its cores and its memory.

``bench calibrate --ranks N`` measures what one of N ranks has, and what they exchange. A profile
made without it is that of a process with all cores: of N ranks each has an N-th.
"""

from __future__ import annotations

from dataclasses import replace

from vram_plan.profiles.collective_rates import links_of
from vram_plan.profiles.gpus import GpuSpec

__all__ = ["of_a_rank"]

_PROCESSOR = "CPU"


def of_a_rank(gpu: GpuSpec, ranks: int) -> GpuSpec:
    """What one of ``ranks`` ranks of a machine has; each card has one rank."""
    if ranks == 1 or gpu.architecture != _PROCESSOR or links_of(gpu) is not None:
        return gpu
    return replace(
        gpu,
        peak_flops={name: rate / ranks for name, rate in gpu.peak_flops.items()},
        memory_bandwidth_bytes_per_s=gpu.memory_bandwidth_bytes_per_s / ranks,
    )
