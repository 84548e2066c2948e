"""The step as the plan describes it: on one process, in DDP, or in FSDP."""

from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket

from vram_plan.bench.engines.batches import Batch
from vram_plan.bench.engines.place import Place
from vram_plan.bench.engines.resident import resident_bytes
from vram_plan.bench.engines.stepper import Stepper
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.sharding import Sharding, sharding_for
from vram_plan.bench.trace.sharding.fsdp2 import FullySharded
from vram_plan.bench.trace.step import Observer, TrainingStep

__all__ = ["PlainLoop", "check_optimizer"]


class PlainLoop:
    """PyTorch's own loop.

    Attributes:
        settling: steps that the engine needs before one is like the other.
        trainable_parameters: those that get gradients, split ones in full.
    """

    def __init__(self, config: TraceConfig, model: Any, watch: Observer, place: Place) -> None:
        self.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._device = place.device
        self._sharding = _sharding(config, place)
        self.settling = self._sharding.first_steps
        model = self._sharding.distribute(model)
        called = _wrapped(self._sharding, model, place)
        self._step = _Step(config, model, watch, partial(torch.autocast, place.device))
        self._step.model = called
        self._sharding.settle(self._step.optimizer)

    def train(self, stepper: Stepper, batches: Sequence[Batch]) -> None:
        """Take all steps, the batches again and again."""
        supply, count = cycle(batches), self._step.config.grad_accum
        with self._sharding.stepping():
            stepper.drive(lambda: self._step.run(list(islice(supply, count))))

    @property
    def first_loss(self) -> float | None:
        """Of the first micro-batch, before anything was learnt."""
        return self._step.first_loss

    def loss(self, batch: Batch) -> float:
        """The loss of a batch now, nothing learnt."""
        with torch.no_grad(), self._sharding.stepping():
            return self._step.whole(self._step.forward(batch))

    def check_stepped(self, total: int) -> None:
        """Raise unless the optimizer did its work in so many steps."""
        check_optimizer(self._step.optimizer, total)

    def states(self) -> dict[str, int]:
        """Bytes of weights and optimizer states."""
        groups = {
            "weights": self._step.model.parameters(),
            "optimizer_states": self._step.optimizer_states(),
        }
        return resident_bytes(groups, self._device)


def check_optimizer(optimizer: Any, total: int) -> None:
    """Raise unless an optimizer's own count of its steps is right.

    Plain SGD counts nothing, and a parameter that no gradient reaches has no state.
    """
    counts = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    if counts - {total}:
        raise RuntimeError(f"the optimizer counts {sorted(counts)} steps of {total}")


class _Step(TrainingStep):
    """Remembers the loss of its first micro-batch."""

    first_loss: float | None = None

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of one micro-batch."""
        loss = super().forward(batch)
        if self.first_loss is None:
            self.first_loss = self.whole(loss)
        return loss

    def whole(self, loss: torch.Tensor) -> float:
        """Not the share of a step of several micro-batches."""
        return float(loss.detach()) * self.config.grad_accum


def _sharding(config: TraceConfig, place: Place) -> Sharding:
    if config.engine == "fsdp2":
        return _OnDevice(config, place)
    return sharding_for(config)


def _wrapped(sharding: Sharding, model: Any, place: Place) -> Any:
    if sharding.config.engine != "ddp":
        return sharding.wrap(model)
    from torch.nn.parallel import DistributedDataParallel

    ids = [place.torch_device] if place.device == "cuda" else None
    if not place.virtual:
        return DistributedDataParallel(model, device_ids=ids)
    # A fake group compares nothing and has no result that the reducer could wait for.
    wrapped = DistributedDataParallel(model, device_ids=ids, init_sync=False)
    wrapped.register_comm_hook(None, _reduced)
    return wrapped


def _reduced(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A bucket as it is, as if the others had sent the same."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class _OnDevice(FullySharded):
    """FSDP2 with its ranks on the device of the run."""

    def __init__(self, config: TraceConfig, place: Place) -> None:
        super().__init__(config)
        self._device = place.device

    def _mesh(self) -> Any:
        """One dimension, or replicas of a node's shards."""
        from torch.distributed.device_mesh import init_device_mesh

        ranks, inside = self.config.ranks, self.config.ranks_per_node
        if self.config.fsdp == "hybrid-shard" and inside < ranks:
            names = ("replicate", "shard")
            return init_device_mesh(self._device, (ranks // inside, inside), mesh_dim_names=names)
        return init_device_mesh(self._device, (ranks,))
