"""Sharding inside the tracer: the libraries' own engines, as rank 0 of a job of any size.

The process group is fake: collectives return at once and move nothing, so one process runs what
one rank of many would run and allocates what it would allocate.
"""

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.sharding.base import Sharding

__all__ = ["Sharding", "sharding_for"]


def sharding_for(config: TraceConfig) -> Sharding:
    """The engine that a configuration names."""
    if config.tp > 1:
        from vram_plan.bench.trace.sharding.tensor import TensorParallel

        return TensorParallel(config)
    if config.engine == "ddp":
        from vram_plan.bench.trace.sharding.ddp import Replicated

        return Replicated(config)
    if config.engine == "fsdp1":
        from vram_plan.bench.trace.sharding.fsdp1 import FlatSharded

        return FlatSharded(config)
    if config.engine == "fsdp2":
        from vram_plan.bench.trace.sharding.fsdp2 import FullySharded

        return FullySharded(config)
    return Sharding(config)
