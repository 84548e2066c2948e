"""A bidirectional LSTM over a short sequence, such as p-tuning's prompt encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.tape import Param, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward

GATES = 4
DIRECTIONS = 2


def lstm(f: Forward, name: str, x: Tensor, shape: tuple[int, int], *, layers: int) -> Tensor:
    """``torch.nn.LSTM(bidirectional=True)`` of ``layers`` layers; ``shape`` is (inputs, hidden).

    Per direction and layer: gates from the input and from the state, two biases each
    (``torch/nn/modules/rnn.py``, torch 2.13.0). Keeps the input and, per layer, the gates, the
    cell and the output of every position; all weights' gradients come out of one function. Sizes
    of cuDNN's own reserve differ by some kilobytes.
    """
    inputs, hidden = shape
    rows = x.numel // inputs
    for layer in range(layers):
        weights = _weights(f, f"{name}.{layer}", inputs, hidden)
        x = _layer(f, x, rows * hidden, weights)
        inputs = DIRECTIONS * hidden
    return x


def _weights(f: Forward, name: str, inputs: int, hidden: int) -> tuple[Param, ...]:
    gates = GATES * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (gates, inputs),
        "weight_hh": (gates, hidden),
        "bias_ih": (gates,),
        "bias_hh": (gates,),
    }
    return tuple(
        f.added_param(f"{name}.{part}{way}", dims)
        for way in ("", "_reverse")
        for part, dims in shapes.items()
    )


def _layer(f: Forward, x: Tensor, cells: int, weights: tuple[Param, ...]) -> Tensor:
    t, itemsize = f.t, x.itemsize
    out = t.new(DIRECTIONS * cells, itemsize)
    reserve = t.new(DIRECTIONS * (GATES + 1) * cells, itemsize)
    kept = (x.storage, out.storage, reserve.storage)
    numel, x_needs = x.numel, x.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel, itemsize) if x_needs else None
        return (dx, *(t.new(w.numel, w.itemsize, "gradients") for w in weights))

    return t.record(out, (x.node, *(w if w.trainable else None for w in weights)), backward)
