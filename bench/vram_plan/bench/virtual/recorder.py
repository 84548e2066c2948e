"""The plain recorder: every storage of every operator, no device's rules imposed.

It sees the same on real tensors and on fake ones, which is what proves a virtual rank against
ranks that really talk to each other.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vram_plan.bench.trace.modules import ModulePaths
from vram_plan.bench.trace.storages import StorageLog, tensors_in
from vram_plan.bench.trace.timeline import Block

__all__ = ["DeviceLog", "PlainRecorder"]

_ITEM = torch.ops.aten._local_scalar_dense.default


class DeviceLog(StorageLog):
    """Without tensors on ``meta``, in which DeepSpeed keeps shapes."""

    def see(
        self, tensor: torch.Tensor, op: str, module: str, size: int | None = None
    ) -> Block | None:
        """Note the storage below a tensor that has one."""
        if tensor.device.type == "meta":
            return None
        return super().see(tensor, op, module, size)


class PlainRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes the storages of every operator's results."""

    def __init__(self, log: StorageLog, paths: ModulePaths, *, fake: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.log = log
        self.paths = paths
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note what it returns."""
        if func is _ITEM and self.fake:
            return args[0].dtype.is_floating_point + 0.0  # a value of no matter
        path, in_node = self.paths.current()
        self.log.where = path
        result = func(*args, **(kwargs or {}))
        name = func.__name__.removesuffix(".default")
        for tensor in tensors_in(result):
            block = self.log.see(tensor, name, path)
            if block is not None:
                block.in_backward = in_node
                back = self.log.phase == "backward"
                block.recomputed = back and self.paths.goes_forward()
        return result
