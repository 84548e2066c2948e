"""GPUs: memory, dense peaks, bandwidths and prices, each with its source.

Two capacities are kept. ``memory_bytes`` is the figure in the product's name. ``usable_bytes`` is
what the driver leaves a CUDA program: ``torch.cuda.get_device_properties(0).total_memory``, which
PyTorch prints in its out-of-memory message; error correction alone takes a sixteenth of a card with
GDDR6.

Peaks are dense and accumulate in FP32, as training does. NVIDIA's data sheets often print the rate
with sparsity, twice the dense one; GeForce cards run FP16 with FP32 accumulation at half the rate
that their box names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from vram_plan.profiles.hardware_tables import number, read_table, sources
from vram_plan.profiles.links import load_links
from vram_plan.profiles.names import UnknownNameError, suggest

__all__ = ["GpuSpec", "Price", "find_gpu", "load_gpus"]

_GIB = 2**30
_DTYPES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4")
_KINDS = ("consumer", "workstation", "datacentre")
_SILENT = {
    "nvidia",
    "amd",
    "geforce",
    "tesla",
    "instinct",
    "radeon",
    "generation",
}  # said or not: the same card
_SAME = {
    "sxm2": "sxm",
    "sxm3": "sxm",
    "sxm4": "sxm",
    "sxm5": "sxm",
    "hbm3": "sxm",
}  # as the driver names modules
_SERIES = ("quadro", "rtx")  # "a6000" and "4090" are what people type


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """An amount of US dollars as somebody asked it on a day.

    Attributes:
        usd: US dollars.
        source: The page that asked it.
        date: The day, as ``YYYY-MM-DD``.
    """

    usd: float
    source: str
    date: str

    def __post_init__(self) -> None:
        if self.usd <= 0:
            raise ValueError(f"usd must be positive, got {self.usd}")
        if not self.source or len(self.date) != len("2026-01-01"):
            raise ValueError(
                f"a price needs a source and a date, got {self.source!r}, {self.date!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One GPU as a program sees it.

    Attributes:
        name: As in the measured rows, for example ``a100-80gb-sxm``.
        vendor: ``NVIDIA`` or ``AMD``.
        kind: ``consumer``, ``workstation`` or ``datacentre``.
        architecture: The maker's name for the generation, for example ``Ampere``.
        compute_capability: ``8.0`` and so on; the ``gfx`` target for AMD.
        memory_bytes: What the product's name says, its gigabytes being binary.
        usable_bytes: Total memory that CUDA (or HIP) reports to one program.
        usable_source: Where that reading, or the rule that replaces it, comes from.
        peak_flops: Dense FLOP/s (operations a second for ``int8``) by dtype, accumulating in FP32;
            a dtype that is missing is not supported or not published.
        memory_bandwidth_bytes_per_s: Of the card's own memory.
        link: Link to the other GPUs of the machine, by catalogue name.
        link_bytes_per_s: Its rate per direction and GPU.
        host_link: Link to the host's memory, by catalogue name.
        host_link_bytes_per_s: Its rate per direction.
        tdp_watts: Board power.
        source: Where the figures come from.
        note: What a reader must know of them.
        rental_usd_per_hour: One GPU for an hour, on demand.
        purchase_usd: One card, at launch.
    """

    name: str
    vendor: str
    kind: str
    architecture: str
    compute_capability: str
    memory_bytes: int
    usable_bytes: int
    usable_source: str
    peak_flops: Mapping[str, float] = field(hash=False)
    memory_bandwidth_bytes_per_s: float
    link: str
    link_bytes_per_s: float
    host_link: str
    host_link_bytes_per_s: float
    tdp_watts: float | None
    source: str
    note: str = ""
    rental_usd_per_hour: Price | None = None
    purchase_usd: Price | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(
                f"{self.name}: kind must be one of {', '.join(_KINDS)}, got {self.kind!r}"
            )
        if not 0 < self.usable_bytes <= self.memory_bytes:
            raise ValueError(
                f"{self.name}: usable_bytes must be positive and at most memory_bytes "
                f"({self.memory_bytes}), got {self.usable_bytes}"
            )
        rates = (
            *self.peak_flops.values(),
            self.memory_bandwidth_bytes_per_s,
            self.link_bytes_per_s,
        )
        if not self.peak_flops or min(rates) <= 0:
            raise ValueError(
                f"{self.name}: peaks and bandwidths must be positive, and there must be a peak"
            )
        if not self.source or not self.usable_source:
            raise ValueError(
                f"{self.name}: source and usable_source must name where the figures come from"
            )

    @property
    def supports_bf16(self) -> bool:
        """Whether matrix products run in bfloat16 at full speed."""
        return "bf16" in self.peak_flops

    @property
    def pcie_generation(self) -> int | None:
        """PCI Express generation of the host link, or None where it is another link."""
        return int(self.host_link[4]) if self.host_link.startswith("pcie") else None

    @property
    def pcie_lanes(self) -> int | None:
        """PCI Express lanes of the host link, or None where it is another link."""
        return int(self.host_link.partition("-x")[2]) if self.host_link.startswith("pcie") else None


@cache
def load_gpus() -> Mapping[str, GpuSpec]:
    """Every GPU of the catalogue, by name: consumer cards, workstations, data centres."""
    prices = {(row["gpu"], row["what"]): _price(row) for row in read_table("prices")}
    return MappingProxyType({row["name"]: _gpu(row, prices) for row in read_table("gpus")})


def find_gpu(name: str) -> GpuSpec:
    """The GPU of that name, or of a short form of it that only one GPU has.

    Case, spaces and hyphens do not matter, and memory size, form factor, brand and series may be
    left out: ``RTX 4090``, ``rtx4090`` and ``4090`` are ``rtx-4090-24gb``, and the driver's
    ``NVIDIA A100-SXM4-80GB`` is ``a100-80gb-sxm``. A name that is in the catalogue as it stands is
    that entry, however many others begin with it (``h100``).

    Raises:
        UnknownNameError: No GPU, or more than one, is called so; the message names near ones.
    """
    if name in load_gpus():
        return load_gpus()[name]
    wanted, forms = _folded(name), _by_short_form()
    found = forms.get(wanted, ())
    if len(found) == 1:
        return load_gpus()[found[0]]
    if found:
        raise UnknownNameError(f"GPU {name!r} can be {', '.join(found)}: give the full name")
    begun = [full for full in load_gpus() if len(wanted) > 1 and _folded(full).startswith(wanted)]
    hint = f"; did you mean {', '.join(begun)}?" if begun else suggest(name, load_gpus())
    raise UnknownNameError(f"unknown GPU {name!r}{hint}")


@cache
def _by_short_form() -> Mapping[str, tuple[str, ...]]:
    """Names of GPUs by each folded form that a person may type; a full name is its GPU alone."""
    names: dict[str, list[str]] = {}
    for name in load_gpus():
        for form in _short_forms(name):
            names.setdefault(form, []).append(name)
    return {form: tuple(found) for form, found in names.items()} | {
        _folded(name): (name,) for name in load_gpus()
    }


def _short_forms(name: str) -> set[str]:
    """Folded forms of a full name: without its memory size, form factor and series."""
    parts = name.split("-")
    sizes = [i for i, part in enumerate(parts) if part.endswith("gb") and part[0].isdigit()]
    if not sizes:
        return {_folded(name)}
    stem, size, form_factor = parts[: sizes[0]], parts[sizes[0]], "".join(parts[sizes[0] + 1 :])
    forms = set()
    while stem:
        base = "".join(stem)
        forms |= {
            base + tail for tail in ("", form_factor, size, size + form_factor, form_factor + size)
        }
        stem = stem[1:] if stem[0] in _SERIES else []
    return forms


def _folded(name: str) -> str:
    words = name.casefold().replace("_", " ").replace("-", " ").split()
    return "".join(_SAME.get(word, word) for word in words if word not in _SILENT)


def _price(row: Mapping[str, str]) -> Price:
    return Price(usd=float(row["usd"]), source=sources(row["source"]), date=row["date"])


def _gpu(row: Mapping[str, str], prices: Mapping[tuple[str, str], Price]) -> GpuSpec:
    name, links = row["name"], load_links()
    peaks = {dtype: number(row[f"{dtype}_tflops"]) for dtype in _DTYPES}
    return GpuSpec(
        name=name,
        vendor=row["vendor"],
        kind=row["kind"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        memory_bytes=int(float(row["memory_gib"]) * _GIB),
        usable_bytes=int(float(row["usable_gib"]) * _GIB),
        usable_source=sources(row["usable_source"]),
        peak_flops={dtype: peak * 1e12 for dtype, peak in peaks.items() if peak is not None},
        memory_bandwidth_bytes_per_s=float(row["bandwidth_gb_s"]) * 1e9,
        link=row["link"],
        link_bytes_per_s=links[row["link"]].bytes_per_second,
        host_link=row["host_link"],
        host_link_bytes_per_s=links[row["host_link"]].bytes_per_second,
        tdp_watts=number(row["tdp_w"]),
        source=sources(row["source"]),
        note=row["note"],
        rental_usd_per_hour=prices.get((name, "rental")),
        purchase_usd=prices.get((name, "purchase")),
    )
