# ruff: noqa: TID253 -- loaded only once a trace has been asked for
"""The CPU: real tensors, and the allocator's own events as PyTorch's profiler reports them."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from vram_plan.bench.trace.build import build_model, count_parameters, materialize
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.losses import last_before_loss
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.step import TrainingStep, make_batch
from vram_plan.bench.trace.timeline import Block, Event, Trace, round_up

__all__ = ["trace_cpu"]

_PHASE = "vram_plan.phase:"
_NOTHING = Block(number=-1, bytes=0, shape=(), dtype="", op="(phase)", module="", phase="")
_MARK = "vram_plan.mark:"


class _Watch:
    """Leaves a note among the profiler's events."""

    def __init__(self) -> None:
        self.head: Any = None

    def enter(self, phase: str) -> None:
        """A phase begins."""
        with torch.profiler.record_function(_PHASE + phase):
            pass

    def mark(self, name: str) -> None:
        """An instant is reached."""
        with torch.profiler.record_function(_MARK + name):
            pass


def trace_cpu(config: TraceConfig) -> Trace:
    """Run the step on real tensors; the values are of no matter."""
    started = time.perf_counter()
    model = build_model(config)
    load_libraries()
    parameters = count_parameters(model)
    watch = _Watch()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        materialize(model, lambda shape, dtype: torch.full(shape, 0.01).to(dtype))
        head = _loss_hook(last_before_loss(model, config.loss), watch)
        batch = make_batch(config)
        step = TrainingStep(config, model, watch)
        for _ in range(config.steps):
            watch.enter("start")
            step.run(batch)
        watch.mark("end")
        head.remove()
    return _account(
        _in_order(profiler.profiler.kineto_results.experimental_event_tree()),
        seconds=time.perf_counter() - started,
        parameters=parameters,
        trainable_parameters=sum(p.numel() for p in step.trainable),
    )


def _loss_hook(head: Any, watch: _Watch) -> Any:
    def leave(*args: Any) -> None:
        if torch.is_grad_enabled():
            watch.mark("forward_end")
            watch.enter("loss")

    return head.register_forward_hook(leave)


def _in_order(roots: Iterable[Any]) -> list[Any]:
    def walk(events: Iterable[Any]) -> Iterator[Any]:
        for event in events:
            yield event
            yield from walk(event.children)

    return sorted(walk(roots), key=lambda event: event.start_time_ns)


def _account(profiled: list[Any], **totals: Any) -> Trace:
    """Add up the allocator's events; the last step's are kept."""
    from torch._C._profiler import _EventType

    trace = Trace(start_bytes=0, start_blocks=[], events=[], marks={}, **totals)
    live, phase, op, count = 0, "build", "", 0
    blocks: dict[int, Block] = {}
    for item in profiled:
        if item.tag != _EventType.Allocation:
            op = item.name
            if op.startswith(_PHASE):
                phase = op.removeprefix(_PHASE)
                trace.events.append(Event(_NOTHING, 0, live, phase))
            if op == _PHASE + "start":
                trace.start_bytes, trace.start_blocks = live, list(blocks.values())
                trace.events, trace.marks = [], {}
            elif op.startswith(_MARK):
                trace.marks[op.removeprefix(_MARK)] = len(trace.events)
            continue
        size, address = item.extra_fields.alloc_size, item.extra_fields.ptr
        if size > 0:
            count += 1
            made = op.removeprefix("aten::")
            block = Block(
                number=count,
                bytes=round_up(size),
                shape=(size,),
                dtype="bytes",
                op=made,
                module="",
                phase=phase,
            )
            blocks[address] = block
            delta = block.bytes
        elif address in blocks:
            block = blocks.pop(address)
            delta = -block.bytes
        else:
            continue  # made before the profiler began
        live += delta
        trace.events.append(Event(block, delta, live, phase))
    return trace
