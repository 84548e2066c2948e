"""Which numbers of GPUs are alike where a combination is refused, so that one stands for many.

What `refusals` and `resolve` ask of the number of GPUs: whether it is one, whether the parallel
degrees divide it, whether the nodes come out even and whether there is more than one of them. What
they ask of the kind of GPU: whether it has bf16. A test holds this to every combination of a space.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from itertools import product
from math import prod

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fp8 import casting
from vram_plan.estimator.overhead import workspace_bytes
from vram_plan.estimator.search.space import Assignment, Space
from vram_plan.estimator.sharding.megatron import before_hopper
from vram_plan.profiles.collective_rates import links_of
from vram_plan.profiles.gpus import GpuSpec

_DEGREES = ("tp", "pp", "cp")
_DEFAULT_NODE = 8


def stages_are_gpus(space: Space) -> bool:
    """Whether some of its configurations have a pipeline stage for each GPU."""
    return "device-map" in space.values("engine") or "naive" in space.values("pp_schedule")


def gpus_traits(space: Space) -> Callable[[int], Hashable]:
    """A function whose equal values mean: refused alike."""
    if stages_are_gpus(space):
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


def recipe_traits(space: Space) -> Callable[[Assignment], Callable[[int], Hashable]]:
    """The same for one recipe, which asks after its own degrees alone."""
    if stages_are_gpus(space):
        return lambda recipe: lambda gpus: gpus

    @cache
    def traits(degrees: tuple[int, ...], node: int) -> Callable[[int], Hashable]:
        divisors = sorted({prod(degrees), *degrees} - {1})

        def of(gpus: int) -> Hashable:
            even = (gpus % node == 0, gpus < node, gpus == node)
            return (gpus == 1, tuple(gpus % divisor == 0 for divisor in divisors), even)

        return of

    def own(recipe: Assignment) -> Callable[[int], Hashable]:
        said = {**space.fixed, **recipe}
        degrees = tuple(said.get(name) or 1 for name in _DEGREES)
        return traits(degrees, said.get("gpus_per_node") or _DEFAULT_NODE)

    return own


def gpu_traits(gpu: GpuSpec | None, *, eight: bool = False) -> Hashable:
    """Equal for two kinds of GPU: refused alike; ``eight``: also where products are in 8 bits."""
    if gpu is None or not eight:
        return gpu is None or gpu.supports_bf16
    return (gpu.supports_bf16, gpu.vendor, gpu.compute_capability)


def has_steady_links(gpu: GpuSpec | None) -> bool:
    """Whether a collective inside a machine takes no less time with more GPUs.

    Over PCIe it does not; NVLink's switches add up on their own with eight, links between pairs are
    more with more peers, and what was measured is what it is.
    """
    peers = ("nvlink", "xgmi")
    return gpu is not None and not gpu.link.startswith(peers) and links_of(gpu) is None


def memory_traits(config: TrainConfig) -> Hashable:
    """Equal for two kinds of GPU: the same ledger."""
    return (workspace_bytes(config), ledger_traits(config))


def ledger_traits(config: TrainConfig) -> Hashable:
    """Equal for two kinds of GPU: the same ledger but for cuBLAS' workspaces."""
    return (config.engine == "megatron" and before_hopper(config), casting(config))
