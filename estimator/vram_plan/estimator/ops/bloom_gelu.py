"""BLOOM's GELU: an autograd function of its own that keeps its input and recomputes the rest."""

from __future__ import annotations

from collections.abc import Callable

from vram_plan.estimator.tape import Tape, Tensor

New = Callable[[], Tensor]


def bloom_gelu(t: Tape, x: Tensor) -> Tensor:
    """``x·½·(1 + tanh(0.79788456·x·(1 + 0.044715·x·x)))``; the steps are not recorded.

    ``GeLUFunction`` of transformers 5.23.0 ``models/bloom/modeling_bloom.py``.
    """
    kept, numel, itemsize = x.storage, x.numel, x.itemsize

    def new() -> Tensor:
        return t.new(numel, itemsize)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        tanh = _tanh(new)
        slope = _slope(new)
        result = new()
        del tanh, slope
        return (result,)

    return t.record(_after(new, new(), _after(new, _tanh(new))), (x.node,), backward)


def _after(new: New, *operands: Tensor) -> Tensor:
    """An operator's result; operands that nobody else holds die with it."""
    return new()


def _tanh(new: New) -> Tensor:
    """``tanh(a·x·(1 + b·x·x))``, one new tensor for each operator."""
    return _after(new, _after(new, new(), _after(new, _after(new, new()))))


def _slope(new: New) -> Tensor:
    """``½·x·((1 − tanh²)·(a + b·x·x)) + ½·(1 + tanh)``."""
    return _after(new, _product(new), _after(new, new()))


def _product(new: New) -> Tensor:
    """``½·x·((1 − tanh²)·(a + b·x·x))``."""
    return _after(new, new(), _after(new, _after(new, new()), _after(new, _after(new, new()))))
