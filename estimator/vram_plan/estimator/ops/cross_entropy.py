"""The loss over the vocabulary."""

from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.tape import Tape, Tensor

INDEX_BYTES = 8


def cross_entropy(t: Tape, logits: Tensor, labels: Tensor, *, autocast: bool = False) -> Tensor:
    """``cross_entropy``: log_softmax, which keeps its output, and nll_loss, which keeps it too.

    nll_loss keeps the labels and a sum of weights besides. Going back, it makes a gradient of the
    logits' size and log_softmax another one. log_softmax is told the logits' dtype and keeps it
    under autocast, where nll_loss casts to fp32 (``aten/src/ATen/native/LossNLL.cpp``,
    ``aten/src/ATen/autocast_mode.h``).
    """
    if autocast:
        return nll_loss(t, cast(t, log_softmax(t, logits), FP32_BYTES), labels)
    return nll_loss(t, log_softmax(t, logits), labels)


def log_softmax(t: Tape, logits: Tensor) -> Tensor:
    """``log_softmax``: keeps its output."""
    out = t.new(logits.numel, logits.itemsize)
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(out, (logits.node,), backward)


def nll_loss(t: Tape, scores: Tensor, labels: Tensor) -> Tensor:
    """``nll_loss``: keeps its input, the labels and the sum of their weights."""
    numel, itemsize = scores.numel, scores.itemsize
    out = t.new(1, FP32_BYTES)
    total_weight = t.new(1, FP32_BYTES)
    kept = (scores.storage, labels.storage, total_weight.storage)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize),)

    saves = (scores, labels, total_weight)
    return t.record(out, (scores.node,), backward, saves=saves)
