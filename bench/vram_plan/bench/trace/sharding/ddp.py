"""DistributedDataParallel: whole weights on every rank, gradients reduced in buckets.

torch's own reducer runs, C++ and all: its buckets come from ``at::empty`` and its copies pass
through the dispatcher, so fake tensors go through it. Two of its calls look into tensors: the
check of the parameters' shapes (``init_sync`` leaves it out) and the exchange of the order in which
gradients came (``sync_bucket_indices`` of torch/csrc/distributed/c10d/reducer.cpp); the latter gets
real tensors of a few bytes.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.utils._python_dispatch import TorchDispatchMode

from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.sharding.base import Sharding
from vram_plan.bench.trace.sharding.process_group import fake_ranks
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["Replicated"]


class Replicated(Sharding):
    """Rank 0 of N with torch's defaults: buckets of 25 MiB, gradients apart from them."""

    #: In its second step the reducer makes its buckets anew, in the order of the gradients.
    first_steps = 2
    paths: ModulePaths | None = None

    def group(self) -> AbstractContextManager[None]:
        """All ranks of the job."""
        return fake_ranks(self.config.ranks)

    def installed(self, log: StorageLog, paths: ModulePaths) -> AbstractContextManager[None]:
        """Nothing is out of sight; buckets are named."""
        self.paths = paths
        return super().installed(log, paths)

    def wrap(self, model: Any) -> Any:
        """The model in torch's wrapper."""
        from torch.nn.parallel import DistributedDataParallel

        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(f"method {self.config.method} leaves nothing to train in this model")
        if self.paths is None:  # real ranks
            return DistributedDataParallel(model)
        with self.paths.moving("model"):
            wrapped: Any = DistributedDataParallel(model, init_sync=False)
        wrapped.register_comm_hook(None, _reduced)
        wrapped.reducer = _Reducer(wrapped.reducer, self.paths)
        return wrapped


def _reduced(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A fake all-reduce of one bucket, in place like a real one.

    Without a hook the reducer asks the collective for its result (``parseHookResult`` of comm.cpp),
    and the fake group's has none.
    """
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class _Reducer:
    """The reducer, its rebuilding watched."""

    def __init__(self, reducer: Any, paths: ModulePaths) -> None:
        self._reducer = reducer
        self._paths = paths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        with self._paths.moving("model"), _RealIndices():  # type: ignore[no-untyped-call]  # likewise
            rebuilt: bool = self._reducer._rebuild_buckets()
            return rebuilt


class _RealIndices(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Lets int32 tensors be real, as the reducer reads them; buckets are floating."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run operators that make or take int32 tensors without the other modes."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        kwargs = kwargs or {}
        given = [a for a in args if isinstance(a, torch.Tensor)]
        wanted = kwargs.get("dtype") is torch.int32 or any(a.dtype is torch.int32 for a in given)
        if not wanted:
            return func(*args, **kwargs)
        with unset_fake_temporarily(), torch.utils._python_dispatch._disable_current_modes():
            return func(*args, **kwargs)
