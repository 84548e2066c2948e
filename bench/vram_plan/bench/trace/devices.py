"""One step on the device that the configuration names, which alone imports its libraries."""

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.quiet import without_library_noise
from vram_plan.bench.trace.timeline import Trace


def trace_step(config: TraceConfig) -> Trace:
    """Run the step on the configuration's device and return what it allocated."""
    with without_library_noise():
        if config.device == "cpu":
            if max(config.ranks, config.tp) > 1:
                from vram_plan.bench.trace.sharding.gloo import trace_ranks

                return trace_ranks(config)[0]
            from vram_plan.bench.trace.real import trace_cpu

            return trace_cpu(config)
        if config.device == "cuda":
            from vram_plan.bench.trace.gpu import trace_gpu

            return trace_gpu(config)
        from vram_plan.bench.trace.fake import trace_fake

        return trace_fake(config)
