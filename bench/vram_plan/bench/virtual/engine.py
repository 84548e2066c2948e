"""The training step as DeepSpeed's users write it: engine(…), engine.backward, engine.step."""

from collections.abc import Callable
from typing import Any

import torch

from vram_plan.bench.trace.losses import last_before_loss
from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.virtual.case import ZeroCase
from vram_plan.bench.virtual.names import Names
from vram_plan.bench.virtual.pretend import keep_stepping

__all__ = ["EngineStep"]


class EngineStep:
    """A DeepSpeed engine, ready to run steps.

    Attributes:
        marks: name of an instant → number of events before it.
    """

    def __init__(self, case: ZeroCase, model: Any, names: Names, paths: ModulePaths) -> None:
        self.case = case
        self.model = model
        self.names = names
        self.paths = paths
        self.log = names.log
        self.marks: dict[str, int] = {}
        self.engine: Any = None
        self.settings: Any = None

    def prepare(self, optimizer: Any) -> None:
        """Let DeepSpeed take model and optimizer over."""
        import deepspeed
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        self.names.watch_gradients()
        if self.case.stage == 3:
            self._name_gathered()
        head = last_before_loss(self.model, self.case.step.loss)
        document = dict(self.case.deepspeed)
        # transformers' Trainer keeps one for the whole run, and PEFT asks it for the stage where
        # it reads weights outside their modules (AdaLoRA's regularization).
        self.settings = HfDeepSpeedConfig(document)  # type: ignore[no-untyped-call]  # its own
        # Three more results are None here: data loader and scheduler, and the optimizer again.
        self.engine = deepspeed.initialize(model=self.model, optimizer=optimizer, config=document)[
            0
        ]
        keep_stepping(self.engine.optimizer)
        self.names.residents(self.engine)
        self.names.watch_buckets(self.engine.optimizer)
        self.paths.on_exit = self._loss_begins(head)

    def run(self, batch: dict[str, torch.Tensor]) -> None:
        """One optimizer step of every micro-batch."""
        for _ in range(self.case.step.grad_accum):
            self._enter("forward")
            loss = self.engine(**batch).loss
            self._mark("loss_end")
            self._enter("backward")
            self.engine.backward(loss)
            del loss
            self._mark("backward_end")
            self.names.residents(self.engine)
            if self.engine.is_gradient_accumulation_boundary():
                self._enter("step")
            self.engine.step()
        self._mark("step_end")
        self.names.residents(self.engine)
        self._name_kept()
        if not self.engine.was_step_applied():
            raise RuntimeError("DeepSpeed skipped the optimizer's step")

    def _enter(self, phase: str) -> None:
        self.log.enter(phase)
        self.paths.root = "model"

    def _mark(self, name: str) -> None:
        self.marks[name] = len(self.log.events)

    def _loss_begins(self, head: Any) -> Callable[[Any], None]:
        def leave(module: Any) -> None:
            if module is head and self.log.phase == "forward":
                self._mark("forward_end")
                self._enter("loss")
                self.paths.root = "loss"

        return leave

    def _name_gathered(self) -> None:
        """Stage 3: what is made while a module's weights are fetched are those weights."""
        from deepspeed.runtime.zero import partitioned_param_coordinator as coordinators

        kind = coordinators.PartitionedParameterCoordinator
        plain, log = kind.fetch_sub_module, self.log

        def fetch(*args: Any, **kwargs: Any) -> Any:
            before = len(log.events)
            plain(*args, **kwargs)
            for event in log.events[before:]:
                if event.delta > 0 and not event.block.component:
                    event.block.component = "temporaries"

        kind.fetch_sub_module = fetch

    def _name_kept(self) -> None:
        """Stage 3: small weights that stay gathered until the next update."""
        kept = getattr(self.engine.optimizer, "persistent_parameters", [])
        self.names.name("buffers", (parameter.data for parameter in kept))
        for parameter in kept:
            block = self.log.block_of(parameter.data)
            if block is not None:
                block.role = "weights"  # a copy of them is a weight's
