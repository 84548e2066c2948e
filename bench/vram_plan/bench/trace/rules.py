"""What a device does beyond the operators' own results: scratch memory, host tensors."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch

from vram_plan.bench.trace.attention import safe_softmax
from vram_plan.bench.trace.quantized import cpu_composites

__all__ = ["CpuRules", "DeviceRules", "fake_tensors_count", "never"]


class DeviceRules:
    """The behaviour a fake device imposes; the base class imposes none."""

    #: Whether ``torch.tensor(…)`` without a device is memory of another kind.
    has_host = False

    def installed(self) -> AbstractContextManager[None]:
        """A context in which operators behave as on the device."""
        return nullcontext()

    def composites(self) -> dict[Any, Callable[..., Any]]:
        """Operators to be recorded by what they do inside."""
        return {torch.ops.aten._safe_softmax.default: safe_softmax}

    def autocast(self, dtype: torch.dtype) -> AbstractContextManager[Any]:
        """Autocast as the device's code sees it."""
        return torch.autocast("cpu", dtype)

    def scratch(self, func: Any, args: Any, kwargs: Any, result: Any) -> list[int]:
        """Bytes of the blocks a kernel takes and gives back within one call."""
        return []

    def size_bytes(self, func: Any, tensor: torch.Tensor) -> int | None:
        """Bytes of a result where the device's differ from the fake kernel's."""
        return None


class CpuRules(DeviceRules):
    """The CPU as it is.

    Its elementwise kernels cannot mix types: TensorIterator copies inputs of another type to the
    common one first (aten/src/ATen/TensorIterator.cpp, ``compute_types``), where CUDA's cast as
    they load.
    """

    def composites(self) -> dict[Any, Callable[..., Any]]:
        """Bitsandbytes' 4-bit product, which the CPU always does by dequantizing."""
        return {**super().composites(), **cpu_composites()}

    def scratch(self, func: Any, args: Any, kwargs: Any, result: Any) -> list[int]:
        """The copies of inputs that are not of the common type."""
        if func.__name__.partition(".")[0].rstrip("_") not in ("add", "mul", "sub", "div"):
            return []
        given = [a for a in args if isinstance(a, torch.Tensor) and a.dim() > 0]
        if len(given) < 2 or given[0].dtype == given[1].dtype:
            return []
        common = torch.promote_types(given[0].dtype, given[1].dtype)
        return [t.numel() * common.itemsize for t in given if t.dtype != common]


def never(*args: Any, **kwargs: Any) -> bool:
    """No, whatever is asked; a mock object would keep the tensors it was asked about."""
    return False


@contextmanager
def fake_tensors_count() -> Iterator[None]:
    """Libraries treat a fake tensor as the tensor it stands for.

    torch's optimizers use their multi-tensor functions for plain tensors only
    (``_foreach_supported_types``), and transformers builds masks for a fake tensor that it
    leaves out for a real one (``is_tracing``).
    """
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.optim import optimizer
    from torch.utils import _foreach_utils
    from transformers.utils import import_utils

    lists: list[list[Any]] = [
        _foreach_utils._foreach_supported_types,
        optimizer._foreach_supported_types,
    ]
    for types in lists:
        types.append(FakeTensor)
    try:
        with mock.patch.object(import_utils, "is_fake_tensor", never):
            yield
    finally:
        for types in lists:
            types.remove(FakeTensor)
