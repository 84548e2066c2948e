"""FSDP2: ``fully_shard`` on each block, then on the model, as users wrap transformers' models."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from vram_plan.bench.trace.build import DTYPES
from vram_plan.bench.trace.modules import ModulePaths, shorten
from vram_plan.bench.trace.sharding.base import Sharding, blocks_of
from vram_plan.bench.trace.sharding.dtensor import (
    composites,
    inference_of_shapes,
    subclasses,
)
from vram_plan.bench.trace.sharding.packed import as_words, scales_follow
from vram_plan.bench.trace.sharding.process_group import fake_ranks, mesh_of
from vram_plan.bench.trace.sharding.storages import patched, resizing, within
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["FullySharded"]

#: Methods of a group of weights that gather, free and reduce.
_MOVES = ("unshard", "reshard", "pre_backward", "post_backward", "finalize_backward")


class FullySharded(Sharding):
    """Rank 0 of N: rows of every weight, gathered block by block."""

    #: The first step sets up what is gathered, and in which order.
    first_steps = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.subclasses = subclasses()

    def group(self) -> AbstractContextManager[None]:
        """All ranks of the job."""
        return fake_ranks(self.config.ranks)

    def composites(self) -> dict[Any, Callable[..., Any]]:
        """Those of DTensor."""
        return composites()

    def distribute(self, model: Any) -> Any:
        """The mesh is made of real numbers, so before tensors are fake."""
        self.mesh = self._mesh()
        return model

    def installed(self, log: StorageLog, paths: ModulePaths) -> AbstractContextManager[None]:
        """Gathered weights and buffers are seen, each under its block."""
        return _seen(log, paths, packed=self.config.quantization != "none")

    def wrap(self, model: Any) -> Any:
        """The same model, its weights replaced by their shards."""
        from torch.distributed.fsdp import fully_shard

        if self.config.quantization != "none":
            as_words(model, DTYPES[self.config.compute_dtype or self.config.dtype])
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": self._policy()}
        if self.config.fsdp == "grad-op":
            options["reshard_after_forward"] = False
        for block in blocks_of(model):
            fully_shard(block, **options)
        fully_shard(model, **options)
        return model

    def _mesh(self) -> Any:
        """One dimension, or replicas of a node's shards."""
        ranks, inside = self.config.ranks, self.config.ranks_per_node
        if self.config.fsdp == "hybrid-shard" and inside < ranks:
            return mesh_of(ranks // inside, inside, names=("replicate", "shard"))
        return mesh_of(ranks)

    def _policy(self) -> Any:
        """Gathered and reduced in the compute type (accelerate utils/dataclasses.py)."""
        from torch.distributed.fsdp import MixedPrecisionPolicy

        kind = self.config.compute_dtype
        if kind is None:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=DTYPES[kind], reduce_dtype=DTYPES[kind])


@contextmanager
def _seen(log: StorageLog, paths: ModulePaths, *, packed: bool) -> Iterator[None]:
    import torch.distributed.fsdp._fully_shard._fsdp_param as param
    import torch.distributed.fsdp._fully_shard._fsdp_param_group as group

    kind = group.FSDPParamGroup
    alloc, free = (
        resizing(getattr(param, name), log, paths) for name in ("alloc_storage", "free_storage")
    )
    patches: list[tuple[Any, str, Any]] = [
        inference_of_shapes(),
        (param, "alloc_storage", alloc),
        (param, "free_storage", free),
        (group, "alloc_storage", alloc),
        (kind, "wait_for_unshard", _known(within(kind.wait_for_unshard, paths, _place), paths)),
    ]
    patches += [(kind, name, within(getattr(kind, name), paths, _place)) for name in _MOVES]
    if packed:
        patches.append(scales_follow())
    with patched(patches):
        yield


def _place(group: Any, *rest: Any) -> str:
    """The path of the module that a group of weights belongs to."""
    return shorten(group._module_fqn or "") or "model"


def _known(function: Any, paths: ModulePaths) -> Any:
    """Autograd adds up gradients of gathered weights: they bear the names of their shards."""

    def call(group: Any, *args: Any) -> None:
        function(group, *args)
        for weight in group.fsdp_params:
            gathered = getattr(weight, "_unsharded_param", None)
            if isinstance(gathered, torch.Tensor):
                paths.name(gathered, shorten(weight._param_fqn or ""))

    return call
