"""Bytes of what lives all the time, told apart by who holds it."""

from collections.abc import Iterable, Mapping

import torch

__all__ = ["resident_bytes"]


def resident_bytes(groups: Mapping[str, Iterable[torch.Tensor]], device: str) -> dict[str, int]:
    """Component → bytes of the storages below its tensors, each storage counted once.

    What two components share is the first one's; what lies elsewhere (offloaded states) counts
    nowhere, and components of which nothing is here are left out.

    Args:
        groups: component → tensors, split ones by their local part.
        device: ``cpu`` or ``cuda``.
    """
    seen: set[int] = set()
    found: dict[str, int] = {}
    for component, tensors in groups.items():
        for tensor in tensors:
            local = getattr(tensor, "_local_tensor", tensor)
            storage = local.untyped_storage()
            if local.device.type != device or storage.data_ptr() in seen or not storage.nbytes():
                continue
            seen.add(storage.data_ptr())
            found[component] = found.get(component, 0) + storage.nbytes()
    return found
