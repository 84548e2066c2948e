"""Which numbers of GPUs are alike where a combination is refused, so that one stands for many.

What `refusals` and `resolve` ask of the number of GPUs: whether it is one, whether the parallel
degrees divide it, whether the nodes come out even and whether there is more than one of them. What
they ask of the kind of GPU: whether it has bf16. A test holds this to every combination of a space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import product
from math import prod

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.overhead import workspace_bytes
from vram_plan.estimator.search.space import Space
from vram_plan.profiles.gpus import GpuSpec

_DEGREES = ("tp", "pp", "cp")
_DEFAULT_NODE = 8


def gpus_traits(space: Space) -> Callable[[int], Hashable]:
    """A function whose equal values mean: refused alike."""
    if "device-map" in space.values("engine") or "naive" in space.values("pp_schedule"):
        return lambda gpus: gpus  # its stages are the GPUs
    degrees = [tuple(d or 1 for d in space.values(name, 1)) for name in _DEGREES]
    products = {prod(each) for each in product(*degrees)}
    divisors = sorted(products.union(*degrees))
    nodes = [size or _DEFAULT_NODE for size in space.values("gpus_per_node")]

    def traits(gpus: int) -> Hashable:
        divides = tuple(gpus % divisor == 0 for divisor in divisors if divisor > 1)
        even = tuple((gpus % size == 0, gpus < size, gpus == size) for size in nodes)
        return (gpus == 1, divides, even)

    return traits


def gpu_traits(gpu: GpuSpec | None) -> bool:
    """Equal for two kinds of GPU: refused alike."""
    return gpu is None or gpu.supports_bf16


def memory_traits(config: TrainConfig) -> Hashable:
    """Equal for two kinds of GPU: the same ledger."""
    architecture = config.gpu.architecture if config.gpu and config.engine == "megatron" else ""
    return (workspace_bytes(config), architecture)
