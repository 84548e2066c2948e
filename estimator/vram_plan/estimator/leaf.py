"""A module that ZeRO 3 does not look into: its weights' gradients wait until it has gone back.

DeepSpeed 0.19.8 ``runtime/zero/stage3.py`` ``create_reduce_and_remove_grad_hooks``: gradients of a
leaf's weights go to the bucket in the leaf's own backward hook, not each as it arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

from vram_plan.estimator.tape import Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward

FeedForward = Callable[["Forward", Tensor], Tensor]


def leaf(run: FeedForward) -> FeedForward:
    """A sparse feed-forward part as one module, where the engine treats it so."""

    @wraps(run)
    def within(f: Forward, x: Tensor) -> Tensor:
        if not f.how.leaves or f.keeps_gradients:
            return run(f, x)
        waiting: list[Tensor] = []

        def release(grad: Tensor) -> tuple[Tensor | None, ...]:
            waiting.clear()
            return (grad,)

        x = f.t.record(Tensor(x.numel, x.itemsize, x.storage), (x.node,), release)
        out = run(f, x)
        for name, param in f.params.items():
            if name.startswith("mlp."):
                param.waiting = waiting
        return out

    return within
