"""Which rank of a job this process is, and on which device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

__all__ = ["Place", "joined"]

#: After so long without an answer a rank gives up on the others.
_PATIENCE = timedelta(seconds=120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One process of a job.

    Attributes:
        device: ``cpu`` or ``cuda``.
        rank: its number.
        ranks: of the job.
        virtual: whether the others do not exist.
    """

    device: str
    rank: int = 0
    ranks: int = 1
    virtual: bool = False

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are: every rank of a machine has a GPU of its own."""
        if self.device == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(device: str, *, virtual: int | None, alone: bool) -> Iterator[Place]:
    """The process group of the job while the block runs.

    Args:
        device: ``cpu`` or ``cuda``.
        virtual: pretend to be rank 0 of so many.
        alone: the engine needs no process group.
    """
    if alone:
        yield _seated(Place(device=device))
    elif virtual is not None:
        from vram_plan.bench.trace.sharding.process_group import fake_ranks

        # DeepSpeed reads them whatever the process group says.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(virtual))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
        with fake_ranks(virtual):
            yield _seated(Place(device=device, ranks=virtual, virtual=True))
    else:
        with _real(device) as place:
            yield place


@contextmanager
def _real(device: str) -> Iterator[Place]:
    """The group that torchrun tells of: NCCL between GPUs, gloo between CPUs."""
    from torch import distributed

    place = _seated(
        Place(device=device, rank=int(os.environ["RANK"]), ranks=int(os.environ["WORLD_SIZE"]))
    )
    if device == "cuda":
        distributed.init_process_group("nccl", timeout=_PATIENCE, device_id=place.torch_device)
    else:
        from vram_plan.bench.trace.sharding.copying import register

        distributed.init_process_group(register(), timeout=_PATIENCE)
    yield place
    # Only where all went well: a rank that failed leaves at once and waits for nobody.
    distributed.barrier()
    distributed.destroy_process_group()


def _seated(place: Place) -> Place:
    if place.device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device cuda: PyTorch sees no GPU here; choose device cpu")
        torch.cuda.set_device(place.torch_device)
    return place
