"""The links of a run: what NCCL gets out of them inside a machine and between machines.

Data sheets give line rates. What a collective sees is lower; NCCL plans with rates of its own
(NVIDIA/nccl @ 5067397c ``src/graph/topo.h``): 20 of 25 GB/s a link for NVLink 2, 20.6 of 25 for
NVLink 4, 40.1 of 50 for NVLink 5, 12 of 15.75 for PCIe 3 x16 (later generations in proportion,
``topo.cc`` kvDictPciGen), 12 of 12.5 for a 100-Gb/s network card; 235 of 300 GB/s for an A100 (@
01afd20a ``src/graph/tuning.cc``). A machine that ``bench calibrate`` has measured has rates of its
own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.transfer import NotModelled
from vram_plan.profiles.collective_rates import MeasuredLinks, links_of
from vram_plan.profiles.gpus import GpuSpec
from vram_plan.profiles.nodes import NodeSpec, load_nodes

__all__ = ["Group", "group_of", "host_rate", "inside", "local_rate"]

_NVLINK = {"nvlink2": 20 / 25, "nvlink3": 235 / 300, "nvlink4": 20.6 / 25, "nvlink5": 40.1 / 50}
"""Share of the line rate, by generation (``SM70_NVLINK_BW`` …, ``compCap80``)."""
_PCIE = 12.0 / 15.754
"""``PCI_BW``: 12 GB/s for generation 3, sixteen lanes."""
_WITHOUT_PEERS = 35 / 48
"""GeForce cards reach each other through host memory only: all-reduce of four RTX 5090 on PCIe 5
gives 35 GB/s where NCCL plans with 48 (NVIDIA/nccl issue 1639)."""
_XGMI = 312.912 / 448
"""All-reduce over eight MI300X of the rate of seven links, and a pair 47.671 of 64
(stas00/ml-engineering @ 744d01e1 ``network/README.md``)."""
_XGMI_PEERS = 7
_NETWORK = 12.0 / 12.5
"""``NET_BW``: 12 GB/s for 100 Gb/s."""
_EFA_V1 = 340 / 400
"""AWS' first adapter: 340 Gb/s of 400 in all-reduce (the same page)."""
_HOST = 55.43 / 63.015
"""Copies from pinned host memory over PCIe 5 x16 (nvbandwidth on eight H200,
stas00/ml-engineering @ 744d01e1 ``network/README.md``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that communicate, and the links they do it over.

    Attributes:
        ranks: how many.
        per_node: of them in one machine.
        medium: ``nvlink``, ``pcie`` or ``xgmi`` inside a machine.
        architecture: of the GPUs; decides about NVLink SHARP.
        local_bytes_per_s: what one rank sends to others of its machine.
        network_bytes_per_s: what the group's ranks of one machine send to other machines; 0 where
            it is not known (an error only if they have to).
        measured: collectives inside this machine as they were measured; None where they were not.
    """

    ranks: int
    per_node: int
    medium: str
    architecture: str
    local_bytes_per_s: float
    network_bytes_per_s: float = 0.0
    measured: MeasuredLinks | None = None

    def __post_init__(self) -> None:
        if self.ranks < 1 or not 1 <= self.per_node <= self.ranks:
            raise ValueError(f"a group of {self.ranks} ranks cannot have {self.per_node} in a node")
        if self.local_bytes_per_s <= 0 or self.network_bytes_per_s < 0:
            raise ValueError("rates of a group must be positive")

    @property
    def nodes(self) -> int:
        """Machines it spans."""
        return -(-self.ranks // self.per_node)

    @property
    def bus_bytes_per_s(self) -> float:
        """What a ring moves past every rank: the slower of the two kinds of link it uses."""
        if self.nodes == 1:
            return self.local_bytes_per_s
        if self.per_node == 1:
            return self.network_bytes_per_s
        return min(self.local_bytes_per_s, self.network_bytes_per_s)


def group_of(config: TrainConfig, ranks: int, stride: int = 1) -> Group:
    """The group of ``ranks`` ranks that lie ``stride`` apart, neighbours in a machine first.

    Tensor ranks are next to one another, then context, data and pipeline ranks, as Megatron-LM
    orders them (``megatron/core/parallel_state.py``, order tp-cp-ep-dp-pp). All groups of a machine
    talk at once, so each has its ranks' share of the network.

    Raises:
        NotModelled: it spans machines whose network the catalogue does not know.
    """
    gpu, node = _hardware(config)
    per_node = max(1, min(ranks, config.gpus_per_node // stride))
    while ranks % per_node:
        per_node -= 1
    network = 0.0
    if per_node < ranks:
        network = _network_rate(node, gpu) * per_node / config.gpus_per_node
    measured = links_of(gpu)
    return Group(
        ranks=ranks,
        per_node=per_node,
        medium=_medium(gpu, node),
        architecture=gpu.architecture,
        local_bytes_per_s=_measured_rate(measured, per_node) or local_rate(gpu, node, per_node),
        network_bytes_per_s=network,
        measured=measured,
    )


def wires(config: TrainConfig) -> Hashable:
    """Equal for machines whose GPUs talk alike: everything `group_of` reads of them."""
    gpu, node = _hardware(config)
    line = node.link_bytes_per_s or gpu.link_bytes_per_s
    near = (node.link or gpu.link, line, gpu.kind, gpu.architecture, links_of(gpu))
    return (config.gpus_per_node, near, node.network, node.network_bytes_per_s)


def inside(group: Group) -> Group:
    """The part of a group that is in one machine."""
    return Group(
        ranks=group.per_node,
        per_node=group.per_node,
        medium=group.medium,
        architecture=group.architecture,
        local_bytes_per_s=group.local_bytes_per_s,
        measured=group.measured,
    )


def _measured_rate(links: MeasuredLinks | None, ranks: int) -> float | None:
    """What a ring moves past every rank, where it was measured."""
    found = links.rate("all-reduce", ranks) if links else None
    return found.bytes_per_s if found else None


@lru_cache(maxsize=256)
def _rates(link: str, line_rate: float, kind: str) -> float:
    family = link.partition("-")[0]
    if family in _NVLINK:
        return line_rate * _NVLINK[family]
    if family == "xgmi":
        return line_rate * _XGMI
    return line_rate * _PCIE * (_WITHOUT_PEERS if kind == "consumer" else 1.0)


def local_rate(gpu: GpuSpec, node: NodeSpec, ranks: int) -> float:
    """Bytes a second that one of ``ranks`` ranks of a machine sends to the others."""
    link = node.link or gpu.link
    line = node.link_bytes_per_s or gpu.link_bytes_per_s
    rate = _rates(link, line, gpu.kind)
    if link.startswith("xgmi"):  # a link for each peer: fewer peers, fewer links
        rate *= min(_XGMI_PEERS, max(1, ranks - 1)) / _XGMI_PEERS
    return rate


def host_rate(config: TrainConfig) -> float:
    """Bytes a second, one way, between a GPU and its host's pinned memory."""
    gpu, _ = _hardware(config)
    return gpu.host_link_bytes_per_s * _HOST


def _network_rate(node: NodeSpec, gpu: GpuSpec) -> float:
    if node.network_bytes_per_s is None:
        known = [one.name for one in load_nodes().values() if one.gpu == gpu.name and one.network]
        which = f", for example {known[0]}" if known else ""
        raise NotModelled(
            f"the network of {node.name} is not in the catalogue; choose --node{which}"
        )
    return node.network_bytes_per_s * (_EFA_V1 if node.network == "efa-v1" else _NETWORK)


def _medium(gpu: GpuSpec, node: NodeSpec) -> str:
    link = node.link or gpu.link
    return next((kind for kind in ("nvlink", "xgmi") if link.startswith(kind)), "pcie")


def _hardware(config: TrainConfig) -> tuple[GpuSpec, NodeSpec]:
    if config.gpu is None or config.node is None:
        raise NotModelled("no GPU was named; give --gpu")
    return config.gpu, config.node
