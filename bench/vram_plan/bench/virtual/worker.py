"""The process that is one rank: DeepSpeed's real engine, two steps, the second one recorded."""

import os
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist

from vram_plan.bench.trace.build import DTYPES, build_model, count_parameters, materialize
from vram_plan.bench.trace.checkpoints import host_copies
from vram_plan.bench.trace.cuda import CudaRules
from vram_plan.bench.trace.losses import unwrapped
from vram_plan.bench.trace.modules import ModulePaths, shorten
from vram_plan.bench.trace.optimizers import load_libraries
from vram_plan.bench.trace.quantized import dora_on_quantized, quantization_state
from vram_plan.bench.trace.quiet import without_library_noise
from vram_plan.bench.trace.recorder import Recorder
from vram_plan.bench.trace.roles import Roles
from vram_plan.bench.trace.routing import balanced_routing
from vram_plan.bench.trace.rules import fake_tensors_count
from vram_plan.bench.trace.sharding import copying
from vram_plan.bench.trace.step import make_batch
from vram_plan.bench.trace.storages import StorageLog
from vram_plan.bench.trace.timeline import Trace
from vram_plan.bench.virtual.adam import zero_optimizer
from vram_plan.bench.virtual.case import ZeroCase
from vram_plan.bench.virtual.engine import EngineStep
from vram_plan.bench.virtual.names import Names
from vram_plan.bench.virtual.partitions import fullest_rank
from vram_plan.bench.virtual.pretend import pretend, stay_put
from vram_plan.bench.virtual.recorder import DeviceLog, PlainRecorder
from vram_plan.bench.virtual.result import RankTrace

__all__ = ["import_libraries", "run_rank", "zero_model"]

_LIBRARIES = ("torch", "transformers", "peft", "deepspeed")


def import_libraries() -> float:
    """Import what every rank needs; return the seconds it took, torch's own import excluded."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    started = time.perf_counter()
    with without_library_noise(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _LIBRARIES:
            import_module(name)
        load_libraries()
    return time.perf_counter() - started


def run_rank(case: ZeroCase, import_seconds: float = 0.0) -> RankTrace:
    """Run one rank to its end; nothing is put back, as the process ends with it."""
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(without_library_noise())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(dora_on_quantized())
        found = _traced(case, stack)
    seconds = found.trace.seconds = time.perf_counter() - started
    return replace(found, seconds={"imports": import_seconds, "trace": seconds})


def _traced(case: ZeroCase, stack: ExitStack) -> RankTrace:
    fake = case.step.device == "fake"
    rules = CudaRules() if fake and case.step.rules == "cuda" else None
    if fake:
        stack.enter_context(fake_tensors_count())
    if rules is not None:
        stack.enter_context(rules.installed())
    model = zero_model(case)
    counts = count_parameters(model), sum(_trainable(model))
    rank = _join(case, model)
    _fill(model, stack, fake=fake)
    log = DeviceLog()
    log.keeps_history = case.step.history
    names = Names(log, model, case)
    pretend(names.pinned if case.pinned else lambda tensor: None)
    paths = stack.enter_context(ModulePaths(model))
    log.role_of = Roles(paths)
    _see(model, log)
    if rules is not None:
        stack.enter_context(host_copies(log))
    stack.enter_context(_recorder(log, paths, rules, model, fake=fake))
    step = EngineStep(case, model, names, paths)
    step.prepare(zero_optimizer(case.step.optimizer, model, on_host=case.offloads[0]))
    trace = _run(step, names, counts)
    if case.step.checkpointing == "offload":
        _note_waiting(names)
    return RankTrace(
        rank=rank,
        trace=trace,
        host=names.host,
        layers=int(model.config.get_text_config().num_hidden_layers),
        seconds={},
        versions={name: version(name) for name in _LIBRARIES},
    )


def _note_waiting(names: Names) -> None:
    """Activations that waited on the host: what is there no longer once the step is over."""
    waited = names.log.host_peak - names.log.host_bytes
    if waited:
        names.host["activations"] = waited


def _recorder(
    log: DeviceLog, paths: ModulePaths, rules: CudaRules | None, model: Any, *, fake: bool
) -> PlainRecorder | Recorder:
    if rules is None:
        return PlainRecorder(log, paths, fake=fake)
    recorder = Recorder(log, paths, rules)
    recorder.composites |= balanced_routing(unwrapped(model).config)
    return recorder


def _run(step: EngineStep, names: Names, counts: tuple[int, int]) -> Trace:
    log = step.log
    batch = make_batch(step.case.step)
    names.name("activations", batch.values())
    for _ in range(step.case.step.steps):
        start, alive = log.restart()
        step.paths.forget_numbers()
        step.run(batch)
    names.rest()
    return Trace(
        start_bytes=start,
        start_blocks=alive,
        events=list(log.events),
        marks=step.marks,
        history=log.history,
        parameters=counts[0],
        trainable_parameters=counts[1],
    )


def zero_model(case: ZeroCase) -> Any:
    """The model on ``meta``; DeepSpeed casts every weight, adapters included, but no buffer.

    0.19.8 ``runtime/engine.py`` ``_cast_module_mixed_precision``.
    """
    model = build_model(case.step)
    wanted = DTYPES[case.step.dtype]
    if wanted is not torch.float32:
        for weight in model.parameters():
            if weight.dtype is torch.float32:
                weight.data = weight.data.to(wanted)
    return model


def _trainable(model: Any) -> list[int]:
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    if not sizes:
        raise ValueError("this method leaves nothing to train in this model")
    return sizes


def _join(case: ZeroCase, model: Any) -> int:
    """Enter the process group; return which rank this is."""
    rank = case.rank
    if rank is None:
        rank = fullest_rank(_trainable(model), case.ranks, case.besides)
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(case.ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(case.port))
    if case.group == "fake":
        from torch.testing._internal.distributed.fake_pg import FakeStore

        store: Any = FakeStore()
        dist.init_process_group("fake", rank=rank, world_size=case.ranks, store=store)
    else:
        dist.init_process_group(copying.register(), rank=rank, world_size=case.ranks)
    return rank


def _fill(model: Any, stack: ExitStack, *, fake: bool) -> None:
    """Give every parameter a tensor: fake ones, or real ones of no matter."""
    if fake:
        from torch._subclasses.fake_tensor import FakeTensorMode

        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        materialize(model, lambda shape, dtype: torch.empty(shape, dtype=dtype, device="cpu"))
        stay_put(model)
        return
    materialize(model, lambda shape, dtype: torch.full(shape, 0.01).to(dtype))


def _see(model: Any, log: StorageLog) -> None:
    """Count what is there before DeepSpeed comes."""
    held = {
        "parameter": model.named_parameters(),
        "buffer": model.named_buffers(),
        "quantization state": quantization_state(model),
    }
    for op, tensors in held.items():
        for name, tensor in tensors:
            block = log.see(tensor, op, shorten(name))
            if block is not None:
                block.component = "buffers" if op == "buffer" else "weights"
