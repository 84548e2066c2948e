"""What a run ran on, as far as it can change a figure: hardware, driver, versions.

Volatile facts (temperature, clocks, load) stay out: they would make every run a series of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HARDWARE", "capacity_of", "surroundings_of"]

HARDWARE = frozenset({"gpu", "machine", "system", "cpus"})
"""Facts that name a machine; the others are versions."""
_PLAIN = ("python", "system", "machine", "cpus", "vram_plan", "commit", "cuda")


def surroundings_of(document: Mapping[str, Any]) -> dict[str, str]:
    """Fact → value of one stored run; what was not seen is left out."""
    seen = document.get("environment") or {}
    facts = _gpu(document)
    found = {name: seen.get(name) for name in _PLAIN}
    found |= {"gpu": facts.get("name"), "driver": facts.get("driver")}
    found |= dict(seen.get("libraries") or {})
    return {name: str(value) for name, value in found.items() if value is not None}


def capacity_of(document: Mapping[str, Any]) -> int | None:
    """Bytes of the device, where the sampler could ask."""
    total = (_gpu(document).get("memory") or {}).get("total")
    return int(total) if total else None


def _gpu(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The device's facts as the sampler noted them."""
    return (document.get("samples") or {}).get("gpu") or {}
