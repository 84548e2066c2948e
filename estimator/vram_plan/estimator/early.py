"""Weight gradients that the loss itself makes, before any segment goes back.

A method that adds a part to the loss (AdaLoRA) makes them last and so has them first. The engine
holds such a part until the weight's own gradient comes, adds the two in place and hands the sum on
(torch 2.13.0 ``torch/csrc/autograd/input_buffer.cpp``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.tape import ROUNDING_BYTES, Param, Storage, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward


def early_gradients(f: Forward) -> int:
    """Their bytes in one segment."""
    sizes = (p.numel * p.itemsize for p in _regularized(f))
    return sum(-(-size // ROUNDING_BYTES) * ROUNDING_BYTES for size in sizes)


def await_early(f: Forward) -> None:
    """Make them where a gradient is there already: each goes when its weight's own has come."""
    for p in _regularized(f):
        p.grad = Tensor(p.numel, p.itemsize, Storage(f.t.meter, p.numel * p.itemsize, "gradients"))


def _regularized(f: Forward) -> list[Param]:
    method = f.how.method
    return [p for p in f.params.values() if p.trainable and method.regularizes(f, p.name)]
