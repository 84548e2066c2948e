"""A bidirectional LSTM over a short sequence, such as p-tuning's prompt encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vram_plan.estimator.ops.elementwise import cast, copy
from vram_plan.estimator.tape import Param, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.forward import Forward

GATES = 4
DIRECTIONS = 2
LOW_BYTES = 2


def lstm(f: Forward, name: str, x: Tensor, shape: tuple[int, int], *, layers: int) -> Tensor:
    """``torch.nn.LSTM(bidirectional=True)`` of ``layers`` layers; ``shape`` is (inputs, hidden).

    One cuDNN call (``aten/src/ATen/native/cudnn/RNN.cpp``, torch 2.13.0) keeps the input, the
    output and a reserve whose size cuDNN does not publish: counted is what going back needs, the
    gates and the cell of every position and the outputs of the lower layers. Under autocast
    (``aten/src/ATen/cudnn/AutocastRNN.cpp``) all weights are copied to one fp16 buffer, kept too,
    and their gradients come as one such buffer that is cast piece by piece.
    """
    inputs, hidden = shape
    t, autocast = f.t, f.how.autocast
    cells = x.numel // inputs * hidden
    weights = tuple(_weights(f, name, inputs, hidden, layers))
    total = sum(weight.numel for weight in weights)
    flat = t.new(total, LOW_BYTES).storage if autocast else None
    if autocast:
        x = cast(t, x, LOW_BYTES)
    out = t.new(DIRECTIONS * cells, x.itemsize)
    per_layer = DIRECTIONS * (GATES + 1) * cells
    reserve = t.new(layers * per_layer + (layers - 1) * out.numel, x.itemsize)
    kept = (x.storage, out.storage, reserve.storage, flat)
    numel, itemsize, x_needs = x.numel, x.itemsize, x.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel, itemsize) if x_needs else None
        joined = t.new(total, LOW_BYTES) if autocast else None
        grads = tuple(t.new(w.numel, w.itemsize, "gradients") for w in weights)
        del joined
        return (dx, *grads)

    copied = Tensor(total, LOW_BYTES, flat) if autocast else None
    saves = (x, out, reserve, copied, *weights)
    out = t.record(
        out, (x.node, *(w if w.trainable else None for w in weights)), backward, saves=saves
    )
    del reserve, copied, saves
    # Autocast's other products are in bf16 where that was asked for.
    return copy(t, out) if autocast and not f.how.half else out


def _weights(f: Forward, name: str, inputs: int, hidden: int, layers: int) -> list[Param]:
    """Per direction and layer: gates from the input and from the state, two biases each.

    ``torch/nn/modules/rnn.py``, torch 2.13.0.
    """
    gates, found = GATES * hidden, []
    for layer in range(layers):
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, DIRECTIONS * hidden if layer else inputs),
            "weight_hh": (gates, hidden),
            "bias_ih": (gates,),
            "bias_hh": (gates,),
        }
        for way in ("", "_reverse"):
            for part, dims in shapes.items():
                found.append(f.added_param(f"{name}.{layer}.{part}{way}", dims))
    return found
