"""Links between GPUs, to the host and between machines: bytes a second, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from vram_plan.profiles.hardware_tables import number, read_table, sources
from vram_plan.profiles.names import UnknownNameError, suggest

__all__ = ["Link", "find_link", "load_links"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A kind of link.

    Attributes:
        name: As in the catalogue, for example ``nvlink3`` or ``pcie4-x16``.
        bytes_per_second: Line rate per direction: of one GPU with all its links, or of one network
            interface.
        latency_seconds: Of a small message, where somebody publishes it.
        source: Where the figures come from.
        note: What they count.
    """

    name: str
    bytes_per_second: float
    latency_seconds: float | None
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if self.bytes_per_second <= 0:
            raise ValueError(
                f"link {self.name}: bytes_per_second must be positive, got {self.bytes_per_second}"
            )
        if not self.source:
            raise ValueError(f"link {self.name}: source must name where the figures come from")


@cache
def load_links() -> Mapping[str, Link]:
    """Every link of the catalogue, by name."""
    return MappingProxyType({row["name"]: _link(row) for row in read_table("links")})


def find_link(name: str) -> Link:
    """The link of that name, in any case.

    Raises:
        UnknownNameError: No link is called so; the message names near ones.
    """
    links = load_links()
    link = links.get(name.casefold())
    if link is None:
        raise UnknownNameError(f"unknown link {name!r}{suggest(name, links)}")
    return link


def _link(row: Mapping[str, str]) -> Link:
    latency_us = number(row["latency_us"])
    return Link(
        name=row["name"],
        bytes_per_second=float(row["gb_s"]) * 1e9,
        latency_seconds=None if latency_us is None else latency_us * 1e-6,
        source=sources(row["source"]),
        note=row["note"],
    )
