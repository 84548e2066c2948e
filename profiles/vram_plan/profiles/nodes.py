"""Machines: host memory, disks and links around the GPUs, so that offload is checked too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from types import MappingProxyType

from vram_plan.profiles.gpus import GpuSpec, load_gpus
from vram_plan.profiles.hardware_tables import number, read_table, sources
from vram_plan.profiles.links import load_links
from vram_plan.profiles.names import UnknownNameError, suggest

__all__ = ["NodeSpec", "default_node", "find_node", "load_nodes"]

_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One machine with its GPUs.

    Attributes:
        name: As in the catalogue, for example ``dgx-a100-80gb`` or ``aws-p4d.24xlarge``.
        gpu: Catalogue name of its GPUs, or None for a machine that takes any.
        gpus: How many devices a program sees.
        host_memory_bytes: Memory of the host.
        nvme_bytes: Local NVMe disks; 0 if there are none, None if it is not known.
        nvme_read_bytes_per_s: Sequential read rate of all of them, where published.
        nvme_write_bytes_per_s: Sequential write rate of all of them, where published.
        link: Link between its GPUs, by catalogue name; None where the card decides.
        network: Link to other machines, by catalogue name, or None if it is not known.
        network_bytes_per_s: Rate of the whole machine per direction, or None if it is not known.
        cpus: Logical processors.
        source: Where the figures come from.
        note: What a reader must know of them.
    """

    name: str
    gpu: str | None
    gpus: int
    host_memory_bytes: int
    nvme_bytes: int | None
    nvme_read_bytes_per_s: float | None = None
    nvme_write_bytes_per_s: float | None = None
    link: str | None
    network: str | None
    network_bytes_per_s: float | None
    cpus: int
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"node {self.name}: gpus must be at least 1, got {self.gpus}")
        if self.host_memory_bytes <= 0 or self.cpus < 1:
            raise ValueError(f"node {self.name}: host_memory_bytes and cpus must be positive")
        if self.nvme_bytes is not None and self.nvme_bytes < 0:
            raise ValueError(
                f"node {self.name}: nvme_bytes must not be negative, got {self.nvme_bytes}"
            )
        if not self.source:
            raise ValueError(f"node {self.name}: source must name where the figures come from")

    @property
    def network_bytes_per_s_per_gpu(self) -> float | None:
        """A GPU's share of the network per direction, or None if the network is not known."""
        return None if self.network_bytes_per_s is None else self.network_bytes_per_s / self.gpus

    @property
    def link_bytes_per_s(self) -> float | None:
        """Rate between the GPUs, per direction and GPU, or None where the card decides."""
        return None if self.link is None else load_links()[self.link].bytes_per_second


@cache
def load_nodes() -> Mapping[str, NodeSpec]:
    """Every machine of the catalogue, by name."""
    return MappingProxyType({row["name"]: _node(row) for row in read_table("nodes")})


def find_node(name: str) -> NodeSpec:
    """The machine of that name, in any case.

    Raises:
        UnknownNameError: No machine is called so; the message names near ones.
    """
    nodes = load_nodes()
    node = nodes.get(name.strip().casefold())
    if node is None:
        raise UnknownNameError(f"unknown node {name!r}{suggest(name, nodes)}")
    return node


@lru_cache(maxsize=4096)
def default_node(gpu: GpuSpec, gpus_per_node: int) -> NodeSpec:
    """The machine assumed around a GPU when the user names none.

    A data-centre GPU gets the reference system that ``data/nodes.csv`` gives it (DGX, or a cloud's
    instance), any other a workstation with 64 GiB of host memory for each card. A run on fewer GPUs
    than that machine has gets all of its host memory and disks: the machine is taken to be its own.
    With more GPUs host memory and processors grow in proportion. The note says so.

    Args:
        gpu: The GPU.
        gpus_per_node: How many of them one machine has.

    Raises:
        ValueError: ``gpus_per_node`` is below 1.
    """
    if gpus_per_node < 1:
        raise ValueError(f"--gpus-per-node must be at least 1, got {gpus_per_node}")
    defaults = _defaults()
    reference = load_nodes()[defaults.get(gpu.name) or defaults[gpu.kind]]
    if reference.gpu == gpu.name and reference.gpus == gpus_per_node:
        return replace(reference, note=_joined("assumed: no node was named", reference.note))
    share = max(gpus_per_node / reference.gpus, 1.0)
    part = min(gpus_per_node / reference.gpus, 1.0)
    return replace(
        reference,
        name=f"{gpus_per_node}x-{gpu.name}",
        gpu=gpu.name,
        gpus=gpus_per_node,
        host_memory_bytes=int(reference.host_memory_bytes * share),
        link=gpu.link,
        network_bytes_per_s=_scaled(reference.network_bytes_per_s, part),
        cpus=max(1, int(reference.cpus * share)),
        note=_joined(
            f"assumed: no node was named, so {gpus_per_node} GPUs of a {reference.name} "
            "and all of its host memory",
            reference.note,
        ),
    )


@cache
def _defaults() -> Mapping[str, str]:
    """Reference machine by name, or kind, of GPU."""
    return {
        gpu: row["name"]
        for row in read_table("nodes")
        for gpu in row["default_for"].split(";")
        if gpu
    }


def _scaled(rate: float | None, share: float) -> float | None:
    return None if rate is None else rate * share


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _bytes(gigabytes: str) -> int | None:
    return int(float(gigabytes) * 1e9) if gigabytes else None


def _rate(gigabytes: str) -> float | None:
    return _scaled(number(gigabytes), 1e9)


def _node(row: Mapping[str, str]) -> NodeSpec:
    return NodeSpec(
        name=row["name"],
        gpu=load_gpus()[row["gpu"]].name if row["gpu"] else None,
        gpus=int(row["gpus"]),
        host_memory_bytes=int(float(row["host_memory_gib"]) * _GIB),
        nvme_bytes=_bytes(row["nvme_gb"]),
        nvme_read_bytes_per_s=_rate(row["nvme_read_gb_s"]),
        nvme_write_bytes_per_s=_rate(row["nvme_write_gb_s"]),
        link=load_links()[row["link"]].name if row["link"] else None,
        network=load_links()[row["network"]].name if row["network"] else None,
        network_bytes_per_s=_rate(row["network_gb_s"]),
        cpus=int(row["cpus"]),
        source=sources(row["source"]),
        note=row["note"],
    )
