"""Weights that are distributed tensors while the model is still on ``meta``."""

from typing import Any

import torch

__all__ = ["sharded_parameter"]


def sharded_parameter(old: Any, make: Any) -> Any:
    """A distributed weight whose local part is made anew; None for other weights."""
    local = getattr(old, "_local_tensor", None)
    if local is None:
        return None
    from torch.distributed.tensor import DTensor

    kind: Any = DTensor
    whole = kind.from_local(
        make(tuple(local.shape), local.dtype),
        old.device_mesh,
        old.placements,
        run_check=False,
        shape=old.shape,
        stride=old.stride(),
    )
    return torch.nn.Parameter(whole, requires_grad=old.requires_grad)
