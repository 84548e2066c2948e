"""FSDP1: ``FullyShardedDataParallel`` as Accelerate wraps, a flat weight for each block."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from vram_plan.bench.trace.build import DTYPES
from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.sharding.base import Sharding, blocks_of
from vram_plan.bench.trace.sharding.process_group import fake_ranks
from vram_plan.bench.trace.sharding.storages import patched, resizing, within
from vram_plan.bench.trace.storages import StorageLog

__all__ = ["FlatSharded"]


class FlatSharded(Sharding):
    """Rank 0 of N: an even part of every flat weight."""

    #: The first step sets up what is gathered, and in which order.
    first_steps = 1

    def group(self) -> AbstractContextManager[None]:
        """All ranks of the job."""
        return fake_ranks(self.config.ranks)

    def installed(self, log: StorageLog, paths: ModulePaths) -> AbstractContextManager[None]:
        """Gathered flat weights are seen, each under its block."""
        return _seen(log, paths)

    def wrap(self, model: Any) -> Any:
        """A unit for each block, the root for the rest, ``use_orig_params``."""
        from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
        from torch.distributed.fsdp import ShardingStrategy as Strategy

        kind = self.config.compute_dtype
        low = None if kind is None else DTYPES[kind]
        strategy = Strategy.SHARD_GRAD_OP if self.config.fsdp == "grad-op" else Strategy.FULL_SHARD
        options: dict[str, Any] = {
            "auto_wrap_policy": _policy(model, self.config.method),
            "mixed_precision": MixedPrecision(param_dtype=low, reduce_dtype=low) if low else None,
            "sharding_strategy": strategy,
            "use_orig_params": True,
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The passed-in `module` is on CPU")
            return FullyShardedDataParallel(model, **options)


def _policy(model: Any, method: str) -> Any:
    """Blocks; with adapters every adapter weight too (peft ``fsdp_auto_wrap_policy``)."""
    from torch.distributed.fsdp import wrap

    kinds = {type(block) for block in blocks_of(model)}
    blocks = functools.partial(wrap.transformer_auto_wrap_policy, transformer_layer_cls=kinds)
    if method in ("full", "freeze", "bitfit"):
        return blocks
    leaves = functools.partial(wrap.lambda_auto_wrap_policy, lambda_fn=_is_adapter)
    return functools.partial(wrap._or_policy, policies=[leaves, blocks])


def _is_adapter(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return not list(module.children()) and weight is not None and weight.requires_grad


class _Device:
    """What FSDP1 asks of an accelerator, for a device without streams."""

    class Event:
        """Nothing to wait for."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            pass

        def record(self, *args: Any) -> "_Device.Event":
            """It has happened."""
            return self

        synchronize = wait = record

    class Stream(Event):
        """Everything runs in order."""

        def wait_stream(self, *args: Any) -> None:
            """The other stream has nothing to do."""

        wait_event = wait_stream

        def record_event(self, *args: Any) -> "_Device.Event":
            """An event that has happened."""
            return _Device.Event()

    def stream(self, stream: Any) -> Any:
        """A stream to work in."""
        return nullcontext()

    def current_stream(self, *args: Any) -> "_Device.Stream":
        """The only stream."""
        return _Device.Stream()

    def is_available(self) -> bool:
        """It is."""
        return True

    def current_device(self) -> torch.device:
        """The device that stands for the GPU."""
        return torch.device("cpu")


@contextmanager
def _seen(log: StorageLog, paths: ModulePaths) -> Iterator[None]:
    import torch.distributed.fsdp._flat_param as flat
    import torch.distributed.fsdp._runtime_utils as runtime
    import torch.distributed.fsdp.fully_sharded_data_parallel as fsdp1
    from torch.distributed import utils

    def place(state: Any, handle: Any, *rest: Any) -> str:
        path = paths.path_of(handle._fully_sharded_module) or "model"
        paths.name(handle.flat_param, path)
        return path

    def place_of_hook(state: Any, module: Any, handle: Any, *rest: Any) -> str:
        return place(state, handle)

    def on_device(state: Any, *args: Any) -> Any:
        state._device_handle = _Device()
        return state

    patches = [
        (flat, "_alloc_storage", resizing(utils._alloc_storage, log, paths)),
        (flat, "_free_storage", resizing(utils._free_storage, log, paths)),
        (flat, "_no_dispatch_record_stream", _nothing),
        (flat, "_same_storage", _same_storage),
        (runtime, "_no_dispatch_record_stream", _nothing),
        (runtime, "_catch_all_reshard", _catch_all_reshard),
        (fsdp1, "_init_device_handle", on_device),
    ]
    hook = within(runtime._pre_backward_hook, paths, place_of_hook)
    patches.append((runtime, "_pre_backward_hook", hook))
    for name in ("_unshard", "_reshard", "_post_backward_hook"):
        patches.append((runtime, name, within(getattr(runtime, name), paths, place)))
    with patched(patches):
        yield


def _nothing(*args: Any) -> None:
    """One stream needs no record."""


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Fake storages have no address; their objects have."""
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _catch_all_reshard(state: Any) -> None:
    """``_runtime_utils._catch_all_reshard``, which compares addresses that fakes have not."""
    import torch.distributed.fsdp._runtime_utils as runtime

    handle = state._handle
    if not handle:
        return
    here = _same_storage(handle.flat_param, handle.flat_param._local_shard)
    if here and not handle._skipped_use_sharded_views:
        return
    runtime._reshard(state, handle, runtime._should_free_in_backward(state, handle))
