"""Activation functions under their Hugging Face names (transformers 5.23.0 ``activations.py``)."""

from __future__ import annotations

from collections.abc import Callable

from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    add,
    cast,
    clamp,
    from_input,
    from_output,
    mul,
    power,
    scale,
    shift,
    tanh,
)
from vram_plan.estimator.tape import Tape, Tensor

_ERF_TEMPORARIES = 4
"""``erf``'s derivative, 2/√π·exp(−x²), makes one for each operator (torch 2.13.0)."""


def activation(t: Tape, x: Tensor, name: str, *, autocast: bool = False) -> Tensor:
    """An activation function under its Hugging Face name (``ACT2FN``).

    Those written out with a power become fp32 there under ``autocast`` (CUDA's fp32 list), and
    stay so.
    """
    if name in _WRITTEN:
        return _WRITTEN[name](t, x)
    if name in _WITH_POWER:
        return _WITH_POWER[name](t, x, autocast)
    if name in {"relu", "tanh", "sigmoid"}:
        return from_output(t, x)
    return from_input(t, x)


def _wide_power(t: Tape, x: Tensor, autocast: bool) -> Tensor:
    return power(t, cast(t, x, FP32_BYTES) if autocast else x)


def _gelu_new(t: Tape, x: Tensor, autocast: bool) -> Tensor:
    """``0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``, written out in transformers' NewGELU."""
    half = scale(t, x)
    inner = scale(t, add(t, x, scale(t, _wide_power(t, x, autocast))))
    return mul(t, half, shift(t, from_output(t, inner.moved())))


def _relu_squared(t: Tape, x: Tensor, autocast: bool) -> Tensor:
    """``relu(x)²``."""
    return _wide_power(t, from_output(t, x), autocast)


def _quick_gelu(t: Tape, x: Tensor) -> Tensor:
    """``x·σ(1.702·x)``."""
    return mul(t, x, from_output(t, scale(t, x)))


def _fast(t: Tape, x: Tensor) -> Tensor:
    """``0.5·x·(1 + tanh(0.7978845608·x·(1 + 0.044715·x·x)))``."""
    half = scale(t, x)
    inner = mul(t, scale(t, x), shift(t, mul(t, scale(t, x), x)))
    return mul(t, half, shift(t, tanh(t, inner.moved())))


def _python(t: Tape, x: Tensor) -> Tensor:
    """``0.5·x·(1 + erf(x/√2))``."""
    half = scale(t, x)
    return mul(t, half, shift(t, from_input(t, scale(t, x), temporaries=_ERF_TEMPORARIES)))


def _clipped(t: Tape, x: Tensor) -> Tensor:
    """``clip(gelu(x), −10, 10)``: both keep their input."""
    return clamp(t, from_input(t, x))


_WRITTEN: dict[str, Callable[[Tape, Tensor], Tensor]] = {
    "gelu_fast": _fast,
    "gelu_python": _python,
    "gelu_10": _clipped,
    "quick_gelu": _quick_gelu,
}
_WITH_POWER: dict[str, Callable[[Tape, Tensor, bool], Tensor]] = {
    "gelu_new": _gelu_new,
    "gelu_python_tanh": _gelu_new,
    "gelu_accurate": _gelu_new,
    "relu2": _relu_squared,
}
