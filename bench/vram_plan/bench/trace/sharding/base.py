"""What the tracer asks of a sharding engine; the base class is one process that splits nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["Sharding", "blocks_of", "local_tensor"]


class Sharding:
    """One process: the model is called as it is.

    Attributes:
        config: what is traced.
        first_steps: steps the engine needs to settle, before those of the configuration.
        subclasses: tensor classes that run their operators on plain tensors inside.
    """

    first_steps = 0
    subclasses: tuple[type, ...] = ()

    def __init__(self, config: TraceConfig) -> None:
        self.config = config

    def group(self) -> AbstractContextManager[None]:
        """The process group of the job."""
        return nullcontext()

    def distribute(self, model: Any) -> Any:
        """Split a model that is still on ``meta``."""
        return model

    def installed(self, log: StorageLog, paths: ModulePaths) -> AbstractContextManager[None]:
        """A context in which what the engine allocates out of sight is seen."""
        return nullcontext()

    def wrap(self, model: Any) -> Any:
        """The module to call instead of the model."""
        return model

    def composites(self) -> dict[Any, Callable[..., Any]]:
        """Operators of the engine to be recorded by what they do inside."""
        return {}

    def stepping(self) -> AbstractContextManager[None]:
        """A context for the steps, fake or real."""
        return nullcontext()

    def settle(self, optimizer: Any) -> None:
        """Make the optimizer fit for split weights."""


def local_tensor(tensor: Any) -> Any:
    """A rank's part of a distributed tensor; any other tensor itself."""
    return getattr(tensor, "_local_tensor", tensor)


def blocks_of(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The repeated blocks: members of the outermost module lists."""
    for child in model.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)
