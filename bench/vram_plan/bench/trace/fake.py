"""The fake device: nothing is computed, everything is recorded."""

import gc
import time
from contextlib import ExitStack
from typing import Any

import torch

from vram_plan.bench.trace.build import build_model, count_parameters, materialize
from vram_plan.bench.trace.checkpoints import host_copies
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.cuda import CudaRules
from vram_plan.bench.trace.losses import last_before_loss, unwrapped
from vram_plan.bench.trace.modules import ModulePaths, shorten
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.quantized import dora_on_quantized, quantization_state
from vram_plan.bench.trace.recorder import Recorder
from vram_plan.bench.trace.roles import Roles
from vram_plan.bench.trace.routing import balanced_routing
from vram_plan.bench.trace.rules import CpuRules, DeviceRules, fake_tensors_count
from vram_plan.bench.trace.sharding import Sharding, sharding_for
from vram_plan.bench.trace.sharding.base import local_tensor
from vram_plan.bench.trace.step import TrainingStep, make_batch
from vram_plan.bench.trace.storages import StorageLog
from vram_plan.bench.trace.timeline import Block, Trace

__all__ = ["trace_fake"]

_PASSES = ("forward", "loss", "backward")


class _Watch:
    """Keeps the log's phase, and names what belongs to the optimizer."""

    def __init__(self, log: StorageLog, paths: ModulePaths) -> None:
        self.log = log
        self.paths = paths
        self.marks: dict[str, int] = {}
        self.step: TrainingStep | None = None

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self.log.enter(phase)
        self.paths.root = "model"

    def mark(self, name: str) -> None:
        """An instant is reached."""
        self.marks[name] = len(self.log.events)
        if self.step is not None and name == "backward_end":
            self.name(self.step.gradients(), "gradients")
        if self.step is not None and name == "step_end":
            self.name(self.step.optimizer_states(), "optimizer_states")
            for tensor in self.step.paged_states():
                self.log.on_host(local_tensor(tensor))

    def name(self, tensors: list[torch.Tensor], component: str) -> None:
        """Say what the storages below some tensors are."""
        for tensor in tensors:
            block = self.log.block_of(local_tensor(tensor))
            if block is not None and block.component in ("", "buffers"):
                block.component = component

    def see(self, tensors: Any, op: str, component: str) -> None:
        """Count tensors that were there before the step."""
        for name, tensor in tensors:
            local = local_tensor(tensor)
            block = self.log.see(local, op, shorten(name)) or self.log.block_of(local)
            if block is not None:
                block.component = component


def trace_fake(config: TraceConfig) -> Trace:
    """Trace the step on fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    started = time.perf_counter()
    rules: DeviceRules = CudaRules() if config.rules == "cuda" else CpuRules()
    log = StorageLog()
    log.keeps_history = config.history
    sharding = sharding_for(config)
    with ExitStack() as stack:
        stack.enter_context(dora_on_quantized())
        stack.enter_context(fake_tensors_count())
        stack.enter_context(rules.installed())
        stack.enter_context(sharding.group())
        model = build_model(config)
        load_libraries()
        parameters = count_parameters(model)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model = sharding.distribute(model)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        materialize(model, lambda shape, dtype: torch.empty(shape, dtype=dtype, device="cpu"))
        paths = stack.enter_context(ModulePaths(model))
        log.role_of = Roles(paths)
        watch = _Watch(log, paths)
        paths.on_exit = _loss_begins(last_before_loss(model, config.loss), watch)
        stack.enter_context(sharding.installed(log, paths))
        if rules.has_host:
            stack.enter_context(host_copies(log))
        recorder = Recorder(log, paths, rules, sharding.subclasses)
        recorder.composites.update(sharding.composites())
        called = _wrap(model, sharding, watch, recorder)
        # Only now: meshes of ranks are searched with the operators that experts are.
        recorder.composites |= balanced_routing(unwrapped(model).config)
        stack.enter_context(recorder)
        batch = make_batch(config)
        watch.name(list(batch.values()), "activations")
        step = watch.step = TrainingStep(config, model, watch, rules.autocast)
        step.model = called
        sharding.settle(step.optimizer)
        stack.enter_context(sharding.stepping())
        for _ in range(sharding.first_steps):
            _run_one(step, batch, log, paths)
        start, alive = _run_steps(step, batch, log, paths, settled=sharding.first_steps > 0)
    log.name_the_rest()
    return Trace(
        start_bytes=start,
        start_blocks=alive,
        events=list(log.events),
        marks=watch.marks,
        seconds=time.perf_counter() - started,
        parameters=parameters,
        trainable_parameters=trainable,
        host_bytes=log.host_peak,
        history=log.history,
    )


def _wrap(model: Any, sharding: Sharding, watch: _Watch, recorder: Recorder) -> Any:
    """The module to call; the model's tensors are counted as its engine has left them."""
    quantized = list(quantization_state(model))
    with recorder:
        called = sharding.wrap(model)
    watch.see(model.named_parameters(), "parameter", "weights")
    watch.see(model.named_buffers(), "buffer", "buffers")
    watch.see(quantized, "quantization state", "weights")
    return called


def _run_steps(
    step: TrainingStep,
    batch: dict[str, torch.Tensor],
    log: StorageLog,
    paths: ModulePaths,
    *,
    settled: bool,
) -> tuple[int, list[Block]]:
    """Run the steps; return what was alive before the last one.

    For the steady state it is enough that the optimizer has its states: if the step then leaves
    exactly what it found, an earlier step would have changed nothing. Otherwise another is run.
    """
    if settled:
        return _run_one(step, batch, log, paths)
    count = step.config.steps
    if count > 1 and not step.config.history:
        step.make_states()
        found = _run_one(step, batch, log, paths)
        if not step.drop_unreached() and log.live_bytes == found[0]:
            return found
        count = 1
    for _ in range(count):
        found = _run_one(step, batch, log, paths)
    return found


def _run_one(
    step: TrainingStep, batch: dict[str, torch.Tensor], log: StorageLog, paths: ModulePaths
) -> tuple[int, list[Block]]:
    _let_go(log)
    found = log.restart()
    paths.forget_numbers()
    step.run(batch)
    return found


def _let_go(log: StorageLog) -> None:
    """Nothing but gradients outlives a pass: what does is in a cycle that Python has not met yet.

    On a device it would be gone by the steady state, sooner or later; here it must not depend on
    how much was made before.
    """
    if any(block.bytes and block.phase in _PASSES for block in log.blocks.values()):
        gc.collect()


def _loss_begins(head: Any, watch: _Watch) -> Any:
    """The loss begins when the head, or what comes before a fused head, has run."""

    def leave(module: Any) -> None:
        if module is head and watch.log.phase == "forward":
            watch.mark("forward_end")
            watch.enter("loss")
            watch.paths.root = "loss"

    return leave
