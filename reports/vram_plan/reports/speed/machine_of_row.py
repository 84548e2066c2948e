"""The machine of a row: which card, and what joins its machines.

A card whose form factor is not stated is the SXM module where eight of them are in one machine:
that is a board with NVLink switches, and its links decide how fast collectives are. The network is
the one that the notes state, or that of a machine which a source's cards stand in. GB200 and GB300
stand in racks whose 72 GPUs share one NVLink domain.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from vram_plan.profiles.gpus import GpuSpec, find_gpu, load_gpus
from vram_plan.profiles.measured import Row
from vram_plan.profiles.nodes import default_node, find_node

__all__ = ["machine_of_row"]

_BOARD = 8
_BITS = 8
_GIGA = 1e9
_MACHINES = {
    ("bigscience", "v100-32gb"): "jean-zay-v100-32gb",
    ("bigscience", "v100-16gb"): "jean-zay-v100-16gb",
}
"""Family of sources and card as stated → the machine: all of BigScience's runs were on Jean Zay."""
_RACKS = frozenset({"gb200", "gb300"})
_RACK = 72
"""GPUs of a rack (https://www.nvidia.com/en-us/data-center/gb200-nvl72/)."""
_WHOLE = re.compile(r"([0-9]+) Gbps node-node")
_PORTS = re.compile(r"([0-9]+) x ([0-9]+) Gb")


def machine_of_row(row: Row, gpu: GpuSpec) -> dict[str, Any]:
    """``gpu`` and ``node`` as options, the node only where the notes state its network."""
    known = _MACHINES.get((row.family, row.gpu or ""))
    if known is not None:
        machine = find_node(known)
        return {"gpu": find_gpu(machine.gpu or ""), "node": machine}
    if gpu.name in _RACKS and row.gpus is not None and row.gpus <= _RACK:
        return {"gpu": gpu, "node": default_node(gpu, row.gpus), "gpus_per_node": row.gpus}
    if (row.gpus_per_node or row.gpus or 1) >= _BOARD:
        gpu = load_gpus().get(f"{gpu.name}-sxm", gpu)
    options: dict[str, Any] = {"gpu": gpu}
    rate = network_of_notes(row.notes or "")
    if rate is not None:
        node = default_node(gpu, row.gpus_per_node or _BOARD)
        options["node"] = replace(node, network_bytes_per_s=rate)
    return options


def network_of_notes(notes: str) -> float | None:
    """Bytes per second between machines per direction, where the notes state it."""
    whole, ports = _WHOLE.search(notes), _PORTS.search(notes)
    if whole:
        return float(whole[1]) * _GIGA / _BITS
    return float(ports[1]) * float(ports[2]) * _GIGA / _BITS if ports else None
