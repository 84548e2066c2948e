"""One rank of a DeepSpeed job without the others: its real engine on a fake process group."""

from vram_plan.bench.virtual.launch import VirtualRankError
from vram_plan.bench.virtual.result import ZeroTrace
from vram_plan.bench.virtual.trace import trace_zero, trace_zeros

__all__ = ["VirtualRankError", "ZeroTrace", "trace_zero", "trace_zeros"]
