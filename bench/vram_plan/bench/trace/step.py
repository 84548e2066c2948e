# ruff: noqa: TID253 -- loaded only once a trace has been asked for
"""The training step, defined once: loss, backward, clip, step, zero_grad."""

import time
from contextlib import ExitStack, nullcontext
from typing import Any

import torch

from vram_plan.bench.trace.build import DTYPES, build_model, materialize
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.cuda import CudaRules
from vram_plan.bench.trace.modules import ModulePaths, shorten
from vram_plan.bench.trace.optimizers import make_optimizer
from vram_plan.bench.trace.recorder import Recorder
from vram_plan.bench.trace.rules import CpuRules, DeviceRules
from vram_plan.bench.trace.storages import StorageLog, tensors_in
from vram_plan.bench.trace.timeline import Trace

__all__ = ["run_fake"]


class _Run:
    """One model's steps with the account of their memory."""

    def __init__(
        self,
        config: TraceConfig,
        model: Any,
        log: StorageLog,
        paths: ModulePaths,
        marks: dict[str, int],
    ) -> None:
        self.paths = paths
        self.marks = marks
        self.config = config
        self.model = model
        self.log = log
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(config.optimizer, self.trainable)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """One optimizer step of ``grad_accum`` micro-batches."""
        for _ in range(self.config.grad_accum):
            loss = self.forward(batch)
            self.enter("backward")
            loss.backward()
            del loss
            self.mark("backward_end")
            self.note_gradients()
        if self.config.clip is not None:
            self.enter("clip")
            torch.nn.utils.clip_grad_norm_(self.trainable, self.config.clip)
        self.enter("step")
        self.optimizer.step()
        self.mark("step_end")
        self.note_states()
        self.enter("zero_grad")
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of one micro-batch; the model's other outputs are not kept."""
        self.enter("forward")
        kind = self.config.autocast
        context = torch.autocast("cpu", DTYPES[kind]) if kind else nullcontext()
        with context:
            loss = self.model(**batch).loss
        self.mark("loss_end")
        if self.config.grad_accum > 1:
            loss = loss / self.config.grad_accum
        return loss  # type: ignore[no-any-return]

    def enter(self, phase: str) -> None:
        self.log.phase = phase
        self.paths.root = "model"

    def mark(self, name: str) -> None:
        self.marks[name] = len(self.log.events)

    def note_gradients(self) -> None:
        """What parameters hold as their gradients is called that."""
        for parameter in self.trainable:
            if parameter.grad is not None:
                block = self.log.block_of(parameter.grad)
                if block is not None:
                    block.component = "gradients"

    def note_states(self) -> None:
        """What the optimizer keeps is its state."""
        for state in self.optimizer.state.values():
            for tensor in state.values():
                block = self.log.block_of(tensor) if torch.is_tensor(tensor) else None
                if block is not None and not block.component:
                    block.component = "optimizer_states"


def run_fake(config: TraceConfig) -> Trace:
    """Trace on fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    started = time.perf_counter()
    rules: DeviceRules = CudaRules() if config.rules == "cuda" else CpuRules()
    log = StorageLog()
    with ExitStack() as stack:
        stack.enter_context(rules.installed())
        model = build_model(config)
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        materialize(model, lambda shape, dtype: torch.empty(shape, dtype=dtype, device="cpu"))
        _note_model(log, model)
        paths = stack.enter_context(ModulePaths(model))
        marks: dict[str, int] = {}
        _mark_loss(model, paths, log, marks)
        stack.enter_context(Recorder(log, paths, rules))
        batch = make_batch(config, log)
        run = _Run(config, model, log, paths, marks)
        for number in range(config.steps):
            if number == config.steps - 1:
                log.phase = "start"
                start, alive = log.live_bytes, list(log.blocks.values())
                log.events.clear()
            paths.forget_numbers()
            run.step(batch)
        del mode
    _classify(log, model)
    return Trace(
        start_bytes=start,
        start_blocks=alive,
        events=log.events,
        marks=run.marks,
        seconds=time.perf_counter() - started,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=sum(p.numel() for p in run.trainable),
    )


def make_batch(config: TraceConfig, log: StorageLog) -> dict[str, torch.Tensor]:
    """Token ids of fixed length, themselves the labels."""
    ids = torch.zeros((config.batch, config.seq), dtype=torch.long)
    labels = ids
    if config.target_seq is not None:
        labels = torch.zeros((config.batch, config.target_seq), dtype=torch.long)
    for tensor in (ids, labels):
        block = log.block_of(tensor)
        if block is not None:
            block.component = "buffers"
            block.op = "batch"
    return {"input_ids": ids, "labels": labels}


def _note_model(log: StorageLog, model: Any) -> None:
    for name, parameter in model.named_parameters():
        block = log.see(parameter, "parameter", shorten(name))
        if block is not None:
            block.component = "weights"
    for name, buffer in model.named_buffers():
        block = log.see(buffer, "buffer", shorten(name))
        if block is not None:
            block.component = "buffers"


def _mark_loss(model: Any, paths: ModulePaths, log: StorageLog, marks: dict[str, int]) -> None:
    """The loss begins when the head's last linear layer has run."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None

    def leave(module: Any) -> None:
        if module is head and log.phase == "forward":
            marks["forward_end"] = len(log.events)
            log.phase = "loss"
            paths.root = "loss"

    paths.on_exit = leave


def _classify(log: StorageLog, model: Any) -> None:
    """Name the components that were not named when their blocks were made."""
    vocab = model.config.get_text_config().vocab_size
    for event in log.events:
        block = event.block
        if block.component:
            continue
        if vocab in block.shape[-2:] and block.dtype in ("fp32", "bf16", "fp16"):
            block.component = "logits"
        elif block.phase in ("forward", "loss") or block.recomputed:
            block.component = "activations"
        else:
            block.component = "temporaries"
