"""The loss over the vocabulary."""

from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.tape import Tape, Tensor

INDEX_BYTES = 8


def cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """``cross_entropy``: log_softmax, which keeps its output, and nll_loss, which keeps it too.

    Going back, nll_loss makes a gradient of the logits' size and log_softmax another one.
    """
    return _nll_loss(t, _log_softmax(t, logits))


def _log_softmax(t: Tape, logits: Tensor) -> Tensor:
    out = t.new(logits.numel, logits.itemsize)
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(grad.numel, grad.itemsize),)

    return t.record(out, (logits.node,), backward)


def _nll_loss(t: Tape, scores: Tensor) -> Tensor:
    kept, numel, itemsize = scores.storage, scores.numel, scores.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize),)

    return t.record(t.new(1, FP32_BYTES), (scores.node,), backward)
