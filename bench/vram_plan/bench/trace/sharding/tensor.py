"""Tensor parallelism as transformers does it: its plans, its styles, torch's DTensor.

``from_pretrained(distributed_config=…)`` applies a model's plan to the model on ``meta`` before it
loads the weights (transformers 5.23.0 distributed/mixin.py ``maybe_distribute_model``); so is it
done here.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.sharding.base import Sharding
from vram_plan.bench.trace.sharding.dtensor import (
    composites,
    inference_of_shapes,
    subclasses,
)
from vram_plan.bench.trace.sharding.process_group import fake_ranks, mesh_of
from vram_plan.bench.trace.sharding.storages import patched
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["TensorParallel"]


class TensorParallel(Sharding):
    """Rank 0 of the ranks that share every layer."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.subclasses = subclasses()

    def group(self) -> AbstractContextManager[None]:
        """The ranks that share the layers."""
        return fake_ranks(self.config.tp)

    def installed(self, log: StorageLog, paths: ModulePaths) -> AbstractContextManager[None]:
        """Only the ranks' own tensors are seen."""
        return patched([inference_of_shapes()])

    def composites(self) -> dict[Any, Callable[..., Any]]:
        """Those of DTensor."""
        return composites()

    def distribute(self, model: Any) -> Any:
        """Apply the model's own plan."""
        from transformers.distributed.configuration_utils import DistributedConfig
        from transformers.distributed.utils import TransformersDeviceMesh

        size = self.config.tp
        if not getattr(model, "tp_plan", None):
            raise ValueError(
                f"tp {size}: transformers has no tensor-parallel plan for "
                f"{type(model).__name__}; choose tp 1"
            )
        sizes = (1, 1, 1, size)
        mesh = TransformersDeviceMesh(
            mesh_of(*sizes, names=("pp", "dp_replicate", "fsdp", "tp")),
            mesh_of(1, 1, size, 1, names=("pp", "dp_replicate", "efsdp", "ep")),
        )
        kind: Any = DistributedConfig
        model = type(model).maybe_distribute_model(model, kind(tp_size=size), mesh)
        model.tie_weights()
        return model

    def stepping(self) -> AbstractContextManager[None]:
        """Gradients are clipped as transformers' Trainer does it."""
        return _clipping()

    def settle(self, optimizer: Any) -> None:
        """Weights on a mesh and others in groups of their own (``create_optimizer``)."""
        groups = []
        for group in optimizer.param_groups:
            split = _by_mesh(group["params"], lambda p: p)
            groups += [{**group, "params": params} for params in split]
        optimizer.param_groups[:] = groups


def _by_mesh(tensors: Any, key: Any) -> list[list[Any]]:
    """The tensors in groups, each on one mesh or on none."""
    groups: dict[Any, list[Any]] = {}
    for tensor in tensors:
        groups.setdefault(getattr(key(tensor), "device_mesh", None), []).append(tensor)
    return list(groups.values())


@contextmanager
def _clipping() -> Iterator[None]:
    """Trainer._clip_grad_norm (transformers 5.23.0): one norm for each mesh, then all together."""
    utils = torch.nn.utils
    plain = utils.clip_grad_norm_

    def clip(parameters: Any, max_norm: float, *rest: Any, **keywords: Any) -> Any:
        having = [p for p in parameters if p.grad is not None]
        groups = _by_mesh(having, lambda p: p.grad)
        if len(groups) <= 1:
            return plain(having, max_norm, *rest, **keywords)
        norms = [utils.get_total_norm([p.grad for p in group]) for group in groups]
        wholes = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
        total = torch.linalg.vector_norm(torch.stack(wholes))
        for group in groups:
            utils.clip_grads_with_norm_(group, max_norm, total)
        return total

    with patched([(utils, "clip_grad_norm_", clip)]):
        yield
