"""torch's DTensor in a trace: what it works out beside the rank's own operators is no memory."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["composites", "inference_of_shapes", "subclasses"]


def subclasses() -> tuple[type, ...]:
    """The tensor classes that run their operators on a rank's part."""
    from torch.distributed.tensor import DTensor

    return (DTensor,)


def composites() -> dict[Any, Callable[..., Any]]:
    """Waiting for a collective gives the tensor it was given; the fake operator makes another."""
    return {torch.ops._c10d_functional.wait_tensor.default: lambda tensor: tensor}


def inference_of_shapes() -> tuple[Any, str, Any]:
    """A patch: DTensor learns a result's whole shape by running the operator on fakes of its own.

    Those stand for no memory (torch/distributed/tensor/_sharding_prop.py), so no mode sees them.
    """
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    plain = getattr(ShardingPropagator, name)

    @functools.wraps(plain)
    def unseen(*args: Any) -> Any:
        with _disable_current_modes():
            return plain(*args)

    return ShardingPropagator, name, unseen
