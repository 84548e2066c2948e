"""What DeepSpeed asks of other ranks and of a GPU, answered so that the step goes on.

A fake process group moves nothing, and fake tensors have no values: norms, overflow flags and
other ranks' numbers are of no matter and must not stop the step. Sizes and lifetimes are untouched.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["keep_stepping", "pretend", "stay_put"]

_NORM_CHECKS = (
    "deepspeed.runtime.bf16_optimizer",
    "deepspeed.runtime.fp16.fused_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.utils",
)


def pretend(pinned: Callable[[torch.Tensor], None]) -> None:
    """Replace the questions for good; the process does nothing else.

    Args:
        pinned: is told of every tensor that DeepSpeed would lock in host memory.
    """
    from deepspeed.accelerator import get_accelerator

    for name in _NORM_CHECKS:
        _module(name).is_invalid_grad_norm = lambda *norm: False
    # Other ranks are asked whether they run the same modules.
    coordinator = _module("deepspeed.runtime.zero.partitioned_param_coordinator")
    coordinator.assert_ints_same_as_other_ranks = lambda ints: None
    # A module's weights are waited for in the order of a set, that of addresses: a bucket may be
    # let go before the next is unpacked or after, another time another way.
    coordinator.set = _InOrder
    # Else every fresh machine compiles a kernel that no fake collective calls, and waits for ever
    # on the lock that a killed compilation leaves behind.
    _module("deepspeed.comm.torch").build_shm_op = lambda: None
    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True

    def pin_memory(tensor: torch.Tensor, *options: Any, **named: Any) -> torch.Tensor:
        pinned(tensor)
        return tensor

    accelerator.pin_memory = pin_memory


class _InOrder(set[Any]):
    """A set that is walked in the order in which DeepSpeed has met its weights."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=lambda one: getattr(one, "ds_id", one)))


def stay_put(model: Any) -> None:
    """The model is where it belongs, in the type that DeepSpeed wants.

    Moving or casting modules swaps parameters, which fake ones that are watched do not allow.
    """

    def unchanged(*args: Any, **named: Any) -> Any:
        return model

    for name in ("to", "bfloat16", "half", "float"):
        setattr(model, name, unchanged)


def keep_stepping(optimizer: Any) -> None:
    """Look for overflow as DeepSpeed does, but never find any."""
    checker = getattr(optimizer, "overflow_checker", None)
    if checker is not None:
        for name in ("has_overflow", "check_using_norm"):
            setattr(checker, name, _never_found(getattr(checker, name)))
    elif hasattr(optimizer, "has_overflow"):
        optimizer.has_overflow = _never_found(optimizer.has_overflow)


def _never_found(look: Callable[..., Any]) -> Callable[..., bool]:
    def looked(*of: Any, **how: Any) -> bool:
        look(*of, **how)
        return False

    return looked


def _module(name: str) -> Any:
    # By name: as an attribute, deepspeed.comm.torch is torch itself.
    return importlib.import_module(name)
