"""The dry run's tracer: the real libraries' training step, every allocation recorded."""

from vram_plan.bench.trace.config import METHODS, OPTIMIZERS, TraceConfig
from vram_plan.bench.trace.devices import trace_step
from vram_plan.bench.trace.extend import Extended, trace_deep
from vram_plan.bench.trace.timeline import Block, Event, Trace

__all__ = [
    "METHODS",
    "OPTIMIZERS",
    "Block",
    "Event",
    "Extended",
    "Trace",
    "TraceConfig",
    "trace_deep",
    "trace_step",
]
