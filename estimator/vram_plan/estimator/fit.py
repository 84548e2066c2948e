"""Where a plan fits: the memory it requires against what each GPU and its host can give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vram_plan.estimator.config import TrainConfig
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
    if config.gpu is not None:
        return (_judge(config.gpu, config.node, memory),)
    gpus = sorted(load_gpus().values(), key=lambda gpu: (gpu.usable_bytes, gpu.name))
    needs_host = memory.host_bytes or memory.nvme_bytes
    return tuple(
        _judge(gpu, default_node(gpu, config.gpus_per_node) if needs_host else None, memory)
        for gpu in gpus
        if config.precision != "bf16" or gpu.supports_bf16
    )


def _judge(gpu: GpuSpec, node: NodeSpec | None, memory: Memory) -> Fit:
    headroom = gpu.usable_bytes - memory.required_bytes
    verdict: Verdict = "fits"
    limit = _host_limit(node, memory)
    if limit or memory.needed_bytes > gpu.usable_bytes:
        verdict = "does not fit"
        limit = limit or "gpu"
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
