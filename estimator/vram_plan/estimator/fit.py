"""Where a plan fits: the memory it requires against what each GPU and its host can give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fp8 import gpu_refusal
from vram_plan.estimator.memory import Memory
from vram_plan.profiles.gpus import GpuSpec, load_gpus
from vram_plan.profiles.nodes import NodeSpec, default_node

Verdict = Literal["fits", "uncertain", "does not fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The verdict for one GPU.

    Attributes:
        gpu: catalogue name.
        memory_bytes: what the card is sold with.
        usable_bytes: what a program can have.
        verdict: ``uncertain`` where only the fragmentation decides.
        headroom_bytes: usable less required; negative when it does not fit.
        limit: what does not fit: ``gpu``, ``host``, ``nvme`` or empty.
    """

    gpu: str
    memory_bytes: int
    usable_bytes: int
    verdict: Verdict
    headroom_bytes: int
    limit: str = ""

    @property
    def fits(self) -> bool:
        """Whether it certainly fits."""
        return self.verdict == "fits"


def fits(config: TrainConfig, memory: Memory) -> tuple[Fit, ...]:
    """The verdict for the GPU asked about, or for every one in the catalogue, smallest first."""
    needed, required = memory.needed_bytes, memory.required_bytes
    if config.gpu is not None:
        limit = _host_limit(config.node, memory)
        return (_judge(config.gpu, limit, needed, required),)
    elsewhere = memory.host_bytes or memory.nvme_bytes
    found = []
    for gpu in _by_capacity():
        if config.precision == "bf16" and not gpu.supports_bf16:
            continue
        if gpu_refusal(config, gpu):
            continue
        node = config.node
        if elsewhere and node is None:
            node = default_node(gpu, config.gpus_per_node)
        found.append(_judge(gpu, _host_limit(node, memory), needed, required))
    return tuple(found)


@cache
def _by_capacity() -> tuple[GpuSpec, ...]:
    return tuple(sorted(load_gpus().values(), key=lambda gpu: (gpu.usable_bytes, gpu.name)))


def _judge(gpu: GpuSpec, limit: str, needed: int, required: int) -> Fit:
    headroom = gpu.usable_bytes - required
    verdict: Verdict = "fits"
    if limit or needed > gpu.usable_bytes:
        verdict, limit = "does not fit", limit or "gpu"
    elif headroom < 0:
        verdict, limit = "uncertain", "gpu"
    return Fit(
        gpu=gpu.name,
        memory_bytes=gpu.memory_bytes,
        usable_bytes=gpu.usable_bytes,
        verdict=verdict,
        headroom_bytes=headroom,
        limit=limit,
    )


def _host_limit(node: NodeSpec | None, memory: Memory) -> str:
    if node is None:
        return ""
    if memory.host_bytes > node.host_memory_bytes:
        return "host"
    return "nvme" if memory.nvme_bytes > (node.nvme_bytes or 0) else ""
