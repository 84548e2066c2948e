"""GELUs that transformers writes out or clips (transformers 5.23.0 ``activations.py``)."""

from __future__ import annotations

from collections.abc import Callable

from vram_plan.estimator.ops.elementwise import activation, from_input, mul, scale, shift, tanh
from vram_plan.estimator.ops.experts import clamp
from vram_plan.estimator.tape import Tape, Tensor

_ERF_TEMPORARIES = 4
"""``erf``'s derivative, 2/√π·exp(−x²), makes one for each operator (torch 2.13.0)."""


def written_gelu(t: Tape, x: Tensor, name: str, *, autocast: bool) -> Tensor:
    """``gelu_fast``, ``gelu_python``, ``gelu_10`` and two names for what ``gelu_new`` does."""
    if name in _WRITTEN:
        return _WRITTEN[name](t, x)
    return activation(t, x, "gelu_new", autocast=autocast)


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
}
