"""DeepSpeed's engine: ZeRO 0 to 3, on real ranks or on one that has no others."""

import importlib
import os
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch

from vram_plan.bench.engines.batches import Batch
from vram_plan.bench.engines.place import Place
from vram_plan.bench.engines.resident import resident_bytes
from vram_plan.bench.engines.stepper import Stepper
from vram_plan.bench.virtual.adam import zero_optimizer
from vram_plan.bench.virtual.case import ZeroCase
from vram_plan.bench.virtual.names import held_by
from vram_plan.bench.virtual.pretend import keep_stepping, pretend

__all__ = ["ZeroLoop", "prepare_deepspeed"]


def prepare_deepspeed(place: Place, *, pinned: bool) -> None:
    """What has to be known before DeepSpeed is set up.

    Without its shared-memory kernel a CPU's ranks need no compiler, and none waits for ever on the
    lock of a compilation that was killed. Ranks that have no others must not ask them.
    """
    if place.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # By name: as an attribute, deepspeed.comm.torch is torch itself.
        comm: Any = importlib.import_module("deepspeed.comm.torch")
        comm.build_shm_op = lambda: None
    if not place.virtual:
        return
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    pin = accelerator.pin_memory
    pretend(lambda tensor: None)
    if place.device == "cuda" and pinned:
        accelerator.pin_memory = pin


class ZeroLoop:
    """The step as DeepSpeed's users write it: engine(…), engine.backward, engine.step.

    Attributes:
        settling: the first step makes what the later ones reuse.
        trainable_parameters: those that get gradients.
        first_loss: of the first micro-batch, before anything was learnt.
    """

    settling = 1

    def __init__(self, case: ZeroCase, model: Any, watch: Any, place: Place) -> None:
        import deepspeed

        self.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._watch, self._place, self._offloads = watch, place, case.offloads
        optimizer = zero_optimizer(case.step.optimizer, model, on_host=case.offloads[0])
        document = dict(case.deepspeed)
        # Three more results are None here: data loader and scheduler, and the optimizer again.
        self._engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=document)[
            0
        ]
        if place.virtual:
            keep_stepping(self._engine.optimizer)
        self._count = case.step.grad_accum
        self.first_loss: float | None = None

    def train(self, stepper: Stepper, batches: Sequence[Batch]) -> None:
        """Take all steps, the batches again and again."""
        supply, count = cycle(batches), self._count
        stepper.drive(lambda: self._step(list(islice(supply, count))))

    def _step(self, batches: Sequence[Batch]) -> None:
        """One optimizer step of these micro-batches."""
        watch, engine = self._watch, self._engine
        for batch in batches:
            watch.enter("forward")
            loss = engine(**batch).loss
            watch.mark("loss_end")
            if self.first_loss is None:
                self.first_loss = float(loss.detach())
            watch.enter("backward")
            engine.backward(loss)
            del loss
            watch.mark("backward_end")
            if engine.is_gradient_accumulation_boundary():
                watch.enter("step")
            engine.step()
        watch.mark("step_end")

    def loss(self, batch: Batch) -> float:
        """The loss of a batch now, nothing learnt."""
        with torch.no_grad():
            return float(self._engine(**batch).loss.detach())

    def check_stepped(self, total: int) -> None:
        """Raise unless DeepSpeed did its work in so many steps."""
        done = self._engine.global_steps - self._engine.skipped_steps
        if done != total:
            raise RuntimeError(f"DeepSpeed applied {done} of {total} optimizer steps")

    def states(self) -> dict[str, int]:
        """Bytes of weights, fp32 master weights and optimizer states, by DeepSpeed's attributes.

        On a CPU what it would offload lies in the same memory: then nothing is told apart.
        """
        if self._place.device == "cpu" and any(self._offloads):
            return {}
        held = held_by(self._engine, self._engine.module)
        groups = {name: held[name] for name in ("weights", "master_weights", "optimizer_states")}
        return resident_bytes(groups, self._place.device)
