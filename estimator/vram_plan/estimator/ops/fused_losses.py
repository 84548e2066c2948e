"""Losses that make their gradients early or hold few logits: fused kernels and chunks."""

from __future__ import annotations

from collections.abc import Callable

from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, log_softmax, nll_loss
from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.ops.linear import AutocastWeight
from vram_plan.estimator.tape import Leaf, Param, Tape, Tensor

Chunk = Callable[[Tape, Tensor], Tensor]


def fused_cross_entropy(t: Tape, logits: Tensor, tokens: int) -> Tensor:
    """A kernel that writes the gradient over the logits: no probabilities, no second gradient.

    Sizes of linkedin/Liger-Kernel 0.6.2 ``ops/cross_entropy.py``: a loss for every token in the
    logits' dtype. Dao-AILab/flash-attention ``flash_attn/ops/triton/cross_entropy.py`` (in-place
    backward) and Unsloth's kernel hold an fp32 log-sum-exp for every token instead.
    """
    losses = t.new(tokens, logits.itemsize)
    mask, count = t.new(tokens, 1), t.new(1, INDEX_BYTES)
    del mask, count
    kept, numel, itemsize = logits.storage, logits.numel, logits.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (Tensor(numel, itemsize, kept),)

    out = t.record(t.new(1, logits.itemsize), (logits.node,), backward)
    del losses
    return out


def fused_linear_cross_entropy(
    t: Tape, x: Tensor, weight: Param, tokens: int, outputs: int
) -> Tensor:
    """Head and loss in chunks, their gradients made in the forward pass.

    linkedin/Liger-Kernel 0.6.2 ``ops/fused_linear_cross_entropy.py``: rows of a chunk are the next
    power of two of ``ceil(tokens / ceil(vocabulary / width))``; a gradient of the input, one of the
    weight in its dtype, and on the way a chunk's logits, its share of the input's gradient and its
    share of the weight's gradient, the latter in fp32 too.
    """
    width = x.numel // tokens
    numel, itemsize, trains = x.numel, x.itemsize, weight.trainable
    grad_input = t.new(numel, itemsize)
    grad_weight = t.new(weight.numel, weight.itemsize, "gradients") if trains else None
    losses = t.new(tokens, FP32_BYTES)
    mask = t.new(tokens, 1)
    rows = min(tokens, liger_rows(tokens, outputs, width))
    logits = t.new(rows * outputs, itemsize)
    if rows < tokens:
        # The next chunk's logits are made before the last ones' name is free.
        logits = t.new(rows * outputs, itemsize)
    _chunk_gradients(t, rows * width, itemsize, weight)
    out = t.new(1, FP32_BYTES)
    del mask, losses, logits
    kept = grad_input.storage, grad_weight.storage if grad_weight else None
    weight_numel, weight_bytes = weight.numel, weight.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        made = Tensor(weight_numel, weight_bytes, kept[1]) if trains else None
        return Tensor(numel, itemsize, kept[0]), made

    return t.record(out, (x.node, weight if trains else None), backward)


def liger_rows(tokens: int, vocabulary: int, width: int) -> int:
    """Tokens in a chunk of `fused_linear_cross_entropy`."""
    rows = -(-tokens // -(-vocabulary // width))
    return 1 << (rows - 1).bit_length()


def _chunk_gradients(t: Tape, numel: int, itemsize: int, weight: Param) -> None:
    """What one chunk makes of its logits: the input's gradient, the weight's in two dtypes."""
    share = t.new(numel, itemsize)
    del share
    if weight.trainable:
        product = t.new(weight.numel, itemsize)
        wide = t.new(weight.numel, FP32_BYTES) if itemsize != FP32_BYTES else None
        del product, wide


def checkpointed(t: Tape, x: Tensor, run: Chunk) -> Tensor:
    """``checkpoint(run, x)``: x alone is kept; going back, ``run`` is repeated on its own tape."""
    before, t.forgets = t.forgets, True
    out = run(t, x)
    t.forgets = before
    if out.node is None:  # nothing inside learns
        return out
    storage, numel, itemsize, needs = x.storage, x.numel, x.itemsize, x.requires_grad
    out_numel, out_bytes, meter = out.numel, out.itemsize, t.meter

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        again = Tape(meter)
        again.component = t.component
        entered = Tensor(numel, itemsize, storage)
        leaf = again.leaf(entered) if needs else Leaf()
        made = run(again, entered)
        del entered
        assert made.node is not None
        node = made.node
        del made
        again.backward(node, out_numel, out_bytes)
        result, leaf.grad = leaf.grad, None
        return (result,)

    out.node = None
    return t.record(out, (x.node or _ANCHOR,), backward)


_ANCHOR = Leaf()
"""Where a gradient nobody wants goes: the weights inside a chunk want theirs."""


def pick_rows(t: Tape, x: Tensor, tokens: int) -> Tensor:
    """Sort tokens and index ``x`` by the order: keeps the order, makes a full gradient."""
    order = t.new(tokens, INDEX_BYTES)
    numel, itemsize, kept = x.numel, x.itemsize, order.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize),)

    return t.record(t.new(numel, itemsize), (x.node,), backward)


def widened(t: Tape, weight: Param) -> Param:
    """``weight.float()`` as a weight whose gradient is cast back."""
    if weight.itemsize == FP32_BYTES:
        return weight
    return AutocastWeight(weight, t.new(weight.numel, FP32_BYTES), t)


def entropy_beside_loss(t: Tape, logits: Tensor, labels: Tensor) -> Tensor:
    """log_softmax, its loss, and its exponential times itself for the entropy."""
    scores = log_softmax(t, logits)
    loss = nll_loss(t, scores, labels)
    probabilities = t.new(logits.numel, logits.itemsize)
    product = t.new(logits.numel, logits.itemsize)
    del probabilities, product
    return loss
