"""How much of its peaks a GPU reaches: curves by size, dtype and kind of kernel.

``data/efficiency.toml`` has a table for each family of GPUs. Every curve saturates: the share of
the peak is ``most · x / (x + half)``, where x is the size that matters and ``half`` the size at
which half of it is reached. ``python -m vram_plan.reports.fit_speed`` fits the file on the measured
rows and says which ones; ``vram-plan bench calibrate`` measures one for the machine at hand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from vram_plan.profiles.gpus import GpuSpec

__all__ = ["CALIBRATED", "EFFICIENCY_FILE", "Curves", "curves_in", "curves_of", "load_curves"]

CALIBRATED = "calibration file "
"""Beginning of the source of a card that was measured; the rest is the file's path."""

EFFICIENCY_FILE = os.path.join(os.path.dirname(__file__), "data", "efficiency.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What one family of GPUs reaches.

    Attributes:
        name: of the family.
        matmul: share of the dense peak that large 16-bit matrix products reach.
        matmul_wide: the same for fp32 products.
        matmul_narrow: the same for 8-bit products.
        product_seconds: time that a product loses to its first and last wave of tiles, which do
            not fill all multiprocessors.
        matmul_inner: length of the inner dimension at which half is reached (filling a pipeline).
        attention_forward: share of the peak of fused attention going forward.
        attention_backward: the same going back.
        memory: share of the memory bandwidth that large memory-bound kernels reach.
        dequantization: the same for kernels that write quantized weights out.
        optimizer: the same for the optimizer step's kernels.
        kernel_seconds: shortest time of a kernel on the device.
        launch_seconds: time in which Python code brings one kernel on its way (autograd's engine
            takes half); kernels wait for the host where the device is faster.
        contention: share of the time of hidden communication that computation loses to it.
        gpus: names this family is for; empty: those of ``architecture`` and ``kind``.
        architecture: and ``kind``: as in the catalogue.
        source: where the figures come from.
        rows: measured rows they were fitted on.
    """

    name: str
    matmul: float
    matmul_wide: float
    matmul_narrow: float
    product_seconds: float
    matmul_inner: float
    attention_forward: float
    attention_backward: float
    memory: float
    dequantization: float
    optimizer: float
    kernel_seconds: float
    launch_seconds: float
    contention: float = 0.2
    gpus: tuple[str, ...] = ()
    architecture: str = ""
    kind: str = ""
    source: str = ""
    rows: int = 0

    def __post_init__(self) -> None:
        for name in SHARES:
            if not 0 < getattr(self, name) <= 1.5:  # a measured peak may beat the data sheet's
                raise ValueError(f"{self.name}: {name} must be a share, got {getattr(self, name)}")
        for name in ("product_seconds", "matmul_inner", "kernel_seconds", "launch_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{self.name}: {name} must not be negative")


SHARES = (
    "matmul",
    "matmul_wide",
    "matmul_narrow",
    "attention_forward",
    "attention_backward",
    "memory",
    "dequantization",
    "optimizer",
)
"""Fields that are a share of a peak."""


@cache
def load_curves() -> tuple[Curves, ...]:
    """Every family of the shipped file; the last one is for GPUs that no other is for."""
    return curves_in(EFFICIENCY_FILE)


def curves_in(path: str) -> tuple[Curves, ...]:
    """Every family of a file.

    Raises:
        ValueError: when the file is malformed.
    """
    import tomllib  # only plans with a GPU pay for it

    with open(path, "rb") as file:
        document: dict[str, Any] = tomllib.load(file)
    known = {field.name for field in fields(Curves)}
    found = []
    for name, values in document["family"].items():
        unknown = set(values) - known
        if unknown:
            raise ValueError(f"{path}: {name} has no curve {', '.join(sorted(unknown))}")
        values["gpus"] = tuple(values.get("gpus", ()))
        found.append(Curves(name=name, **values))
    return tuple(found)


@cache
def curves_of(gpu: GpuSpec) -> Curves:
    """The family of a GPU: by name, else by architecture and kind, else by architecture.

    A machine that was measured has its own, in the file that is its source.
    """
    if gpu.source.startswith(CALIBRATED):
        return curves_in(gpu.source.removeprefix(CALIBRATED))[0]
    families = load_curves()
    tests = (
        lambda one: gpu.name in one.gpus,
        lambda one: one.architecture == gpu.architecture and one.kind == gpu.kind,
        lambda one: one.architecture == gpu.architecture,
        lambda one: not one.architecture and one.kind == gpu.kind,
    )
    for test in tests:
        for family in families:
            if test(family):
                return family
    return families[-1]
