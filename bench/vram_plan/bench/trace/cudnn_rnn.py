"""``torch.nn.LSTM`` as CUDA runs it: one cuDNN call for all layers.

Source: aten/src/ATen/native/cudnn/RNN.cpp and aten/src/ATen/cudnn/AutocastRNN.cpp (torch 2.13.0).
cuDNN does not publish the size of the reserve it keeps for the backward pass; here it is what that
pass needs: the gates and the cell of every position and the outputs of the lower layers. Its
workspaces are left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

__all__ = ["cudnn_lstm"]

_GATES = 4


class _CudnnRnn(torch.autograd.Function):
    """Keeps the input, the output, the reserve and the weights that were cast."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, sizes: tuple[int, int, int], low: bool, *weights: torch.Tensor
    ) -> torch.Tensor:
        rows, directions, layers = sizes
        hidden = weights[1].shape[1]
        cells = rows * hidden * directions
        flat = x.new_empty(sum(w.numel() for w in weights)) if low else x.new_empty(0)
        out = x.new_empty((*x.shape[:-1], directions * hidden))
        reserve = x.new_empty(layers * (_GATES + 1) * cells + (layers - 1) * cells)
        ctx.save_for_backward(x, out, reserve, flat, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, _, _, flat, *weights = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        made = x.new_empty(sum(w.numel() for w in weights)) if flat.numel() else None
        found = tuple(torch.empty_like(w) for w in weights)
        del made
        return (dx, None, None, *found)


def _lstm(
    x: torch.Tensor, state: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``torch.lstm`` (torch/nn/modules/rnn.py); autocast runs it in fp16, whatever it is given."""
    _has_biases, layers, _dropout, _train, bidirectional, _batch_first = rest
    low = torch.is_autocast_enabled("cpu")
    if low:
        x = x.to(torch.float16)
    sizes = x.numel() // x.shape[-1], 1 + bidirectional, layers
    out: torch.Tensor = _CudnnRnn.apply(x, sizes, low, *weights)  # type: ignore[no-untyped-call]
    last = [torch.empty_like(part, dtype=x.dtype) for part in state]
    return out, last[0], last[1]


@contextmanager
def cudnn_lstm() -> Iterator[None]:
    """A context in which LSTMs are cuDNN's."""
    with mock.patch.object(torch._VF, "lstm", _lstm, create=True):
        yield
