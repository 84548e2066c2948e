"""The CPU: real tensors, and the allocator's own events as PyTorch's profiler reports them."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vram_plan.bench.trace.build import build_model, count_parameters, materialize
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.losses import last_before_loss
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.quantized import dora_on_quantized
from vram_plan.bench.trace.sharding import sharding_for
from vram_plan.bench.trace.step import TrainingStep, make_batch
from vram_plan.bench.trace.timeline import Block, Event, Trace, round_up

__all__ = ["CpuWatch", "aside", "steps_of", "trace_cpu"]

_PHASE = "vram_plan.phase:"
_NOTHING = Block(number=-1, bytes=0, shape=(), dtype="", op="(phase)", module="", phase="")
_MARK = "vram_plan.mark:"
_ASIDE = "vram_plan.aside:"


@contextmanager
def aside() -> Iterator[None]:
    """What is allocated meanwhile, and given back whenever, is no part of the step.

    The profiler is told; recorders that follow the dispatcher do not see it.
    """
    with torch.profiler.record_function(_ASIDE + "begin"):
        pass
    try:
        with _disable_current_modes():
            yield
    finally:
        with torch.profiler.record_function(_ASIDE + "end"):
            pass


class CpuWatch:
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
    with dora_on_quantized():
        return _run(config)


def _run(config: TraceConfig) -> Trace:
    started = time.perf_counter()
    sharding = sharding_for(config)
    model = build_model(config)
    load_libraries()
    parameters = count_parameters(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model = sharding.distribute(model)
    watch = CpuWatch()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        materialize(model, lambda shape, dtype: torch.full(shape, 0.01).to(dtype))
        hook = _loss_hook(last_before_loss(model, config.loss), watch)
        batch = make_batch(config)
        called = sharding.wrap(model)
        step = TrainingStep(config, model, watch)
        step.model = called
        sharding.settle(step.optimizer)
        with sharding.stepping():
            for _ in range(max(config.steps, sharding.first_steps + 1)):
                watch.enter("start")
                step.run(batch)
        hook.remove()
    return steps_of(
        profiler,
        seconds=time.perf_counter() - started,
        parameters=parameters,
        trainable_parameters=trainable,
    )


def steps_of(profiler: Any, **totals: Any) -> Trace:
    """What the last step that was watched allocated, as a profiler with memory has recorded it.

    Args:
        profiler: one that has ended.
        **totals: further fields of the trace.
    """
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    return _account(_in_order(tree), **totals)


def _loss_hook(head: Any, watch: CpuWatch) -> Any:
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
    account = _Account()
    for item in profiled:
        if item.tag == _EventType.Allocation:
            event = account.change(item.extra_fields.alloc_size, item.extra_fields.ptr)
            if event is not None:
                trace.events.append(event)
            continue
        account.op = item.name
        if item.name.startswith(_ASIDE):
            account.aside = item.name.endswith("begin")
        if item.name == _PHASE + "start":
            trace.start_bytes, trace.start_blocks = account.live, list(account.blocks.values())
            trace.events, trace.marks = [], {}
        if item.name.startswith(_PHASE):
            account.phase = item.name.removeprefix(_PHASE)
            trace.events.append(Event(_NOTHING, 0, account.live, account.phase))
        elif item.name.startswith(_MARK):
            trace.marks[item.name.removeprefix(_MARK)] = len(trace.events)
    return trace


class _Account:
    """The bytes alive, by address."""

    def __init__(self) -> None:
        self.live = 0
        self.phase = "build"
        self.op = ""
        self.aside = False
        self.blocks: dict[int, Block] = {}
        self.count = 0

    def change(self, size: int, address: int) -> Event | None:
        """One event of the allocator; None for memory made before the profiler began."""
        if size > 0 and self.aside:
            return None
        if size > 0:
            self.count += 1
            block = self.blocks[address] = Block(
                number=self.count,
                bytes=round_up(size),
                shape=(size,),
                dtype="bytes",
                op=self.op.removeprefix("aten::"),
                module="",
                phase=self.phase,
            )
            delta = block.bytes
        elif address in self.blocks:
            block = self.blocks.pop(address)
            delta = -block.bytes
        else:
            return None
        self.live += delta
        return Event(block, delta, self.live, self.phase)
