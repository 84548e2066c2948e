# ruff: noqa: TID253 -- loaded only once a trace has been asked for
"""The optimizers by the plan's names, from the libraries that have them."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["make_optimizer"]


def make_optimizer(name: str, model: Any) -> Any:
    """The optimizer with its library's defaults; weight decay as it comes."""
    optim = torch.optim
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds: dict[str, Callable[[list[Any]], Any]] = {
        "adamw": lambda p: optim.AdamW(p, lr=1e-4),
        "adamw-fused": lambda p: optim.AdamW(p, lr=1e-4, fused=True),
        "adamw-for-loop": lambda p: optim.AdamW(p, lr=1e-4, foreach=False),
        "sgd": lambda p: optim.SGD(p, lr=1e-4),
        "sgd-momentum": lambda p: optim.SGD(p, lr=1e-4, momentum=0.9),
        "rmsprop": lambda p: optim.RMSprop(p, lr=1e-4),
    }
    if name not in kinds:
        raise ValueError(f"optimizer {name!r} cannot be traced yet")
    return kinds[name](parameters)
