# ruff: noqa: TID253 -- loaded only once a trace has been asked for
"""What a device does beyond the operators' own results: scratch memory, host tensors."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["CpuRules", "DeviceRules"]


class DeviceRules:
    """The behaviour a fake device imposes; the base class imposes none."""

    #: Whether ``torch.tensor(…)`` without a device is memory of another kind.
    has_host = False

    def installed(self) -> AbstractContextManager[None]:
        """A context in which operators behave as on the device."""
        return nullcontext()

    def scratch(self, func: Any, args: Any, kwargs: Any, result: Any) -> list[int]:
        """Bytes of the blocks a kernel takes and gives back within one call."""
        return []

    def size_bytes(self, func: Any, tensor: torch.Tensor) -> int | None:
        """Bytes of a result where the device's differ from the fake kernel's."""
        return None


class CpuRules(DeviceRules):
    """The CPU as it is."""
