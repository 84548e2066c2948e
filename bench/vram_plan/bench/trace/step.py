"""The training step, defined once for every device: loss, backward, clip, step, zero_grad."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch.autograd import graph

from vram_plan.bench.trace.build import DTYPES
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.optimizers import make_optimizer

__all__ = ["Observer", "TrainingStep", "make_batch"]


_PAGED = ("state1", "state2")
_PAGED_ELEMENTS = 100_000
Batch = dict[str, torch.Tensor]
Autocast = Callable[[torch.dtype], AbstractContextManager[Any]]


class Observer(Protocol):
    """Who watches the step."""

    def enter(self, phase: str) -> None:
        """A phase begins."""

    def mark(self, name: str) -> None:
        """An instant is reached."""


class TrainingStep:
    """A model with its optimizer, ready to run steps."""

    def __init__(
        self,
        config: TraceConfig,
        model: Any,
        observer: Observer,
        autocast: Autocast | None = None,
    ) -> None:
        self.autocast = autocast or partial(torch.autocast, "cpu")
        self.config = config
        self.model = model
        self.observer = observer
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        if not self.trainable:
            raise ValueError(f"method {config.method} leaves nothing to train in this model")
        self.reached: set[int] = set()
        self.optimizer = make_optimizer(config.optimizer, model)

    def make_states(self) -> None:
        """Let the optimizer make its states, by a step on gradients of no matter."""
        for parameter in self.trainable:
            parameter.grad = torch.zeros_like(parameter)
        self.observer.enter("step")
        self.optimizer.step()
        self.observer.mark("step_end")
        self.optimizer.zero_grad(set_to_none=True)

    def drop_unreached(self) -> int:
        """Take away the states of parameters that no gradient reached; return their number."""
        dropped = [p for p in self.trainable if id(p) not in self.reached]
        for optimizer in getattr(self.optimizer, "members", [self.optimizer]):
            for parameter in dropped:
                optimizer.state.pop(parameter, None)
        return len(dropped)

    def run(self, batch: Batch | Sequence[Batch]) -> None:
        """One optimizer step of ``grad_accum`` micro-batches; one alone is taken each time."""
        watch = self.observer
        batches = [batch] * self.config.grad_accum if isinstance(batch, dict) else batch
        for one in batches:
            loss = self.forward(one)
            watch.enter("backward")
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
            watch.mark("backward_end")
        self.reached = {id(p) for p in self.trainable if p.grad is not None}
        if self.config.clip is not None:
            watch.enter("clip")
            torch.nn.utils.clip_grad_norm_(self.trainable, self.config.clip)
        watch.enter("step")
        self.optimizer.step()
        watch.mark("step_end")
        watch.enter("zero_grad")
        self.optimizer.zero_grad(set_to_none=True)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of one micro-batch; the model's other outputs are not kept."""
        self.observer.enter("forward")
        kind, pages_out = self.config.autocast, self.config.offload == "activations"
        pinned = self.trainable[0].is_cuda  # as the exported script; pageable copies crawl
        with (
            self.autocast(DTYPES[kind]) if kind else nullcontext(),
            graph.save_on_cpu(pin_memory=pinned) if pages_out else nullcontext(),
        ):
            loss: torch.Tensor = self.model(**batch).loss
        self.observer.mark("loss_end")
        if self.config.grad_accum > 1:
            loss = loss / self.config.grad_accum
        return loss

    def gradients(self) -> list[torch.Tensor]:
        """The gradients held now."""
        return [p.grad for p in self.trainable if p.grad is not None]

    def optimizer_states(self) -> list[torch.Tensor]:
        """The tensors the optimizer keeps."""
        states = self.optimizer.state.values()
        return [t for state in states for t in state.values() if torch.is_tensor(t)]

    def paged_states(self) -> list[torch.Tensor]:
        """States of its optimizer that CUDA's unified memory would hold."""
        return paged_states(self.config.optimizer, self.optimizer)


def paged_states(name: str, optimizer: Any) -> list[torch.Tensor]:
    """States that CUDA's unified memory would hold (bitsandbytes optim/optimizer.py).

    Args:
        name: the plan's word for the optimizer.
        optimizer: with the states it has made so far.
    """
    if not name.startswith("paged-"):
        return []
    states = [state.get(n) for state in optimizer.state.values() for n in _PAGED]
    return [t for t in states if t is not None and t.numel() >= _PAGED_ELEMENTS]


def make_batch(config: TraceConfig) -> dict[str, torch.Tensor]:
    """Token ids of fixed length, themselves the labels."""
    ids = torch.zeros((config.batch, config.seq), dtype=torch.long)
    labels = ids
    if config.target_seq is not None:
        labels = torch.zeros((config.batch, config.target_seq), dtype=torch.long)
    return {"input_ids": ids, "labels": labels}
