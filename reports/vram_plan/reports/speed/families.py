"""Families of GPUs that share efficiency curves, and what is believed of them before any row.

A starting value comes with how far the fit may go from it: one unit of its logarithm's ``width``
costs as much as five rows' hundredth of error. They are measurements of single kernels:

* matrix products of the best shapes reach 0.87 of an A100's peak and 0.80 of an H100's in bf16
  (stas00/ml-engineering ``compute/accelerator/README.md``, maximum achievable matmul FLOPS); those
  of training are less well shaped;
* fused attention: 0.50 to 0.73 of an A100's peak (FlashAttention-2, arXiv:2307.08691 abstract), the
  same kernels 0.35 of an H100's (arXiv:2407.08608 abstract);
* the same kernels on an RTX 4090, causal at a head of 128: 0.91 forward, 0.60 back (apache/tvm
  ``tl_doc/flash_perf.md``), and products 0.96 (mli/transformers-benchmarks issue 4); those of
  training again a seventh below;
* products of the best shapes reach 0.79 of a B300's peak and 0.73 of a GB200's, whose
  data sheet says a ninth more at a twentieth more clock (the same page @ 744d01e1); cuDNN's
  attention 0.55 of a B200's (FlashAttention-4, abstract: 0.71, which is 1.3 of cuDNN 9.13's);
* memory-bound kernels come near the bandwidth, as copies do;
* a kernel that Python launches takes the host about 20 microseconds: short sequences in the rows of
  QwenLM and Hugging Face say so for themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vram_plan.profiles.gpus import GpuSpec

__all__ = ["FAMILIES", "PRIORS", "Family", "Prior", "family_of"]


@dataclass(frozen=True, slots=True)
class Prior:
    """A parameter before the fit: its value and the width of its logarithm."""

    value: float
    width: float


PRIORS = {
    "matmul": Prior(0.75, 0.15),
    "matmul_wide": Prior(0.85, 0.2),
    "matmul_inner": Prior(100.0, 0.5),
    "product_seconds": Prior(4e-6, 0.5),
    "attention_forward": Prior(0.55, 0.2),
    "attention_backward": Prior(0.45, 0.2),
    "memory": Prior(0.85, 0.1),
    "dequantization": Prior(0.3, 0.5),
    "optimizer": Prior(0.8, 0.1),
    "kernel_seconds": Prior(4e-6, 0.4),
    "launch_seconds": Prior(18e-6, 0.3),
    "contention": Prior(0.3, 0.5),
    "matmul_narrow": Prior(0.6, 0.15),
}
"""Parameter of ``Curves`` → what is believed of it."""
_OF_16_BITS = tuple(name for name in PRIORS if name != "matmul_narrow")
"""Cards without products of 8 bits, or without rows that have them, say nothing of those."""
_FEW = ("matmul", "matmul_wide", "attention_forward", "attention_backward", "launch_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Rows of these GPUs are fitted together.

    Attributes:
        name: key in the file.
        architecture: and ``kind``: as in the catalogue.
        gpus: names, where the family is of single GPUs.
        fitted: parameters that its rows decide; the others are those of ``like``.
        like: an earlier family.
        priors: beliefs of its own.
    """

    name: str
    architecture: str = ""
    kind: str = ""
    gpus: tuple[str, ...] = ()
    fitted: tuple[str, ...] = _OF_16_BITS
    like: str = ""
    priors: dict[str, Prior] = field(default_factory=dict)

    def prior(self, name: str) -> Prior:
        """What is believed of a parameter."""
        return self.priors.get(name, PRIORS[name])


_HOPPER = {
    "matmul": Prior(0.65, 0.15),
    "attention_forward": Prior(0.38, 0.2),
    "attention_backward": Prior(0.32, 0.2),
}
_BLACKWELL = {
    "matmul": Prior(0.64, 0.15),
    "attention_forward": Prior(0.5, 0.2),
    "attention_backward": Prior(0.42, 0.2),
}
_ADA = {
    "matmul": Prior(0.83, 0.15),
    "attention_forward": Prior(0.91, 0.1),
    "attention_backward": Prior(0.6, 0.1),
}
FAMILIES = (
    Family(name="ampere-datacentre", architecture="Ampere", kind="datacentre"),
    Family(
        name="hopper-500w",
        gpus=("h100-96gb-sxm",),
        fitted=(*_FEW, "matmul_narrow"),
        like="ampere-datacentre",
        priors=_HOPPER,
    ),
    Family(
        name="hopper",
        architecture="Hopper",
        kind="datacentre",
        fitted=(*_FEW, "memory", "contention", "matmul_narrow"),
        like="ampere-datacentre",
        priors=_HOPPER,
    ),
    Family(
        name="blackwell-grace",
        gpus=("gb200",),
        fitted=(*_FEW, "contention", "matmul_narrow"),
        like="hopper",
        priors=_BLACKWELL | {"matmul": Prior(0.59, 0.15)},
    ),
    Family(
        name="blackwell",
        architecture="Blackwell",
        kind="datacentre",
        fitted=(*_FEW, "contention", "matmul_narrow"),
        like="hopper",
        priors=_BLACKWELL,
    ),
    Family(
        name="volta",
        architecture="Volta",
        kind="datacentre",
        fitted=(*_FEW, "memory"),
        like="ampere-datacentre",
    ),
    Family(
        name="ampere-consumer",
        architecture="Ampere",
        kind="consumer",
        fitted=_FEW,
        like="ampere-datacentre",
    ),
    Family(
        name="ada-consumer",
        architecture="Ada",
        kind="consumer",
        fitted=_FEW,
        like="ampere-datacentre",
        priors=_ADA,
    ),
)
"""Those with rows, named GPUs before their architecture."""


def family_of(gpu: GpuSpec) -> Family | None:
    """The family that a GPU's rows belong to."""
    for family in FAMILIES:
        if gpu.name in family.gpus:
            return family
        if (gpu.architecture, gpu.kind) == (family.architecture, family.kind):
            return family
    return None
