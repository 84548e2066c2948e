"""Losses that make their gradients early or hold few logits: fused kernels and chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES, log_softmax, nll_loss
from vram_plan.estimator.ops.elementwise import FP32_BYTES, cast
from vram_plan.estimator.ops.linear import LOW_BYTES, AutocastWeight, cached_cast
from vram_plan.estimator.paging import brought_back
from vram_plan.estimator.tape import Backward, Leaf, Param, Storage, Tape, Tensor
from vram_plan.estimator.tensors import storages_in

CHUNK_TOKENS = 256
"""Of TRL's chunked loss (huggingface/trl ``trl/trainer/sft_trainer.py``)."""
Chunk = Callable[[Tape, Tensor], Tensor]
Cache = dict[str, Tensor]
Given = tuple[Tensor | Param | None, ...]


def fused_cross_entropy(t: Tape, logits: Tensor, tokens: int) -> Tensor:
    """A kernel that writes the gradient over the logits: no probabilities, no second gradient.

    Sizes of linkedin/Liger-Kernel 0.6.2 ``ops/cross_entropy.py``: a loss for every token in the
    logits' dtype. Dao-AILab/flash-attention ``flash_attn/ops/triton/cross_entropy.py`` (in-place
    backward) and Unsloth's kernel hold an fp32 log-sum-exp for every token instead.
    """
    losses = t.new(tokens, logits.itemsize)
    if t.work is not None:  # one pass for maximum and sum, one that reads and writes
        t.work.in_place(3 * logits.numel * logits.itemsize)
    mask, count = t.new(tokens, 1), t.new(1, INDEX_BYTES)
    del mask, count
    kept, numel, itemsize = logits.storage, logits.numel, logits.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        if t.work is not None:
            t.work.in_place(2 * numel * itemsize)
        return (Tensor(numel, itemsize, brought_back(t, 0, kept)),)

    out = t.record(t.new(1, logits.itemsize), (logits.node,), backward)
    del losses
    return out


def fused_linear_cross_entropy(
    t: Tape, x: Tensor, head: tuple[Param, Param | None], outputs: int, cache: Cache | None = None
) -> Tensor:
    """Head (weight, bias) and loss in chunks, their gradients made in the forward pass.

    linkedin/Liger-Kernel 0.6.2 ``ops/fused_linear_cross_entropy.py``: rows of a chunk are the next
    power of two of ``ceil(tokens / ceil(vocabulary / width))``; a gradient of the input, one of the
    weight in its dtype, and on the way a chunk's logits, its share of the input's gradient and its
    share of the weight's gradient, the latter in fp32 too. ``cache`` has autocast's copies of
    weights and is None without autocast.
    """
    weight, bias = head
    width = weight.numel // outputs
    tokens, numel, itemsize = x.numel // width, x.numel, x.itemsize
    learns = [p if p is not None and p.trainable else None for p in head]
    grad_input = t.new(numel, itemsize)
    of_weights = (learns[0], bias)  # a bias has one whether it learns or not
    made = [t.new(p.numel, p.itemsize, "gradients") if p else None for p in of_weights]
    losses, mask = t.new(tokens, FP32_BYTES), t.new(tokens, 1)
    rows = min(tokens, liger_rows(tokens, outputs, width))
    logits = [_chunk_logits(t, rows, itemsize, head, cache, [])]
    if rows < tokens:
        logits.append(_chunk_logits(t, rows, itemsize, head, cache, logits))
    _chunk_gradients(t, rows * width, logits[0].itemsize, weight, cache)
    if t.work is not None:
        t.work.fused_head((tokens, width, outputs), rows, itemsize, learns=learns[0] is not None)
    out = t.new(1, FP32_BYTES)
    del mask, losses, logits
    kept = grad_input.storage, *(grad.storage if grad else None for grad in made)
    sizes = [(p.numel, p.itemsize) if p else None for p in learns]
    del made

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        all_sizes = [(numel, itemsize), *sizes]
        back = tuple(x.storage for x in t.unpacked)  # where saved tensors went to the host
        pairs = zip(all_sizes, kept or (*back, None, None), strict=False)
        return tuple(Tensor(*size, storage) if size else None for size, storage in pairs)

    return t.record(out, (x.node, *learns), backward)


def _chunk_logits(
    t: Tape,
    rows: int,
    itemsize: int,
    head: tuple[Param, Param | None],
    cache: Cache | None,
    before: list[Tensor],
) -> Tensor:
    """``part @ weight.t()``, and ``+ bias``: in fp32 where autocast holds that in fp32.

    The product takes the name of the logits ``before``, which are gone then.
    """
    weight, bias = head
    outputs = weight.shape[0]
    if cache is None or itemsize <= LOW_BYTES:
        logits = t.new(rows * outputs, itemsize)
    else:
        copy = t.new(weight.numel, LOW_BYTES, "temporaries")
        held = copy, t.new(rows * weight.shape[1], LOW_BYTES)
        logits = t.new(rows * outputs, LOW_BYTES)
        del copy, held
    before.clear()
    return logits if bias is None else t.new(logits.numel, max(logits.itemsize, bias.itemsize))


def liger_rows(tokens: int, vocabulary: int, width: int) -> int:
    """Tokens in a chunk of `fused_linear_cross_entropy`."""
    rows = -(-tokens // -(-vocabulary // width))
    return 1 << (rows - 1).bit_length()


def _chunk_gradients(
    t: Tape, numel: int, itemsize: int, weight: Param, cache: Cache | None
) -> None:
    """What one chunk makes of its logits: the input's gradient, the weight's in two dtypes."""
    low = cache is not None and weight.itemsize > LOW_BYTES
    if low and cache is not None:
        copy = cached_cast(t, weight, LOW_BYTES, cache)
        itemsize = LOW_BYTES
    share = t.new(numel, itemsize)
    del share
    if low:
        del copy
    if weight.trainable:
        part = t.new(numel, LOW_BYTES) if low else None
        product = t.new(weight.numel, itemsize)
        del part
        wide = t.new(weight.numel, FP32_BYTES) if itemsize != FP32_BYTES else None
        del product, wide


def checkpointed(
    t: Tape, x: Tensor, run: Chunk, given: Given = (), *, uses_weight: bool = False
) -> Tensor:
    """``checkpoint(run, x)``: x alone is kept; going back, ``run`` is repeated on its own tape.

    Where saved tensors go to the host, all arguments do (``given`` are the others, the weight
    first; ``_NoopSaveInputs`` in torch 2.13.0 ``torch/utils/checkpoint.py``), and the product keeps
    the weight that came back if it ``uses_weight`` as it is.
    """
    before, t.forgets = t.forgets, True
    out = run(t, x)
    t.forgets = before
    if out.node is None:  # nothing inside learns
        return out
    storage, numel, itemsize, needs = x.storage, x.numel, x.itemsize, x.requires_grad
    out_numel, out_bytes, meter = out.numel, out.itemsize, t.meter

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        nonlocal storage
        again = Tape(meter)
        again.component = t.component
        entered = Tensor(numel, itemsize, brought_back(t, 0, storage))
        arguments, t.unpacked = t.unpacked, []
        leaf = again.leaf(entered) if needs else Leaf()
        again.work = t.work
        if t.work is not None:
            t.work.override = "recompute"
        made = run(again, entered)
        del entered
        arguments = arguments[1:2] if uses_weight else []
        if t.work is not None:
            t.work.override = ""
        assert made.node is not None
        node = made.node
        del made
        _hold(again, storage)
        storage = None
        again.backward(node, out_numel, out_bytes)
        arguments.clear()
        result, leaf.grad = leaf.grad, None
        return (result,)

    out.node = None
    return t.record(out, (x.node or _ANCHOR,), backward, saves=(x, *given))


def _hold(again: Tape, storage: Storage | None) -> None:
    """Keep what a checkpoint saved until the last function that had saved something has run.

    The hooks of its saved tensors name the checkpoint's frame, and that its arguments
    (``_checkpoint_hook`` in torch 2.13.0 ``torch/utils/checkpoint.py``).
    """
    if again.work is not None:
        return
    for node in again.nodes:
        fn = node.fn
        cells = (fn.__closure__ if fn is not None else None) or ()
        if fn is not None and any(storages_in(cell.cell_contents for cell in cells)):
            node.fn = partial(_holding, fn, storage)
            return


def _holding(fn: Backward, storage: Storage | None, grad: Tensor) -> tuple[Tensor | None, ...]:
    return fn(grad)


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


def widened(t: Tape, weight: Param, *, autocast: bool) -> Param:
    """``weight.float()`` as a weight whose gradient is cast back.

    Under autocast the product casts it again: a transposed view, so the copy is not cached.
    """
    if autocast and weight.itemsize == FP32_BYTES:
        copy = t.new(weight.numel, LOW_BYTES, "temporaries")
        return AutocastWeight(weight, copy, t, flipped=True)
    if weight.itemsize == FP32_BYTES:
        return weight
    return AutocastWeight(weight, t.new(weight.numel, FP32_BYTES, "temporaries"), t)


def plus_bias(t: Tape, logits: Tensor, bias: Param) -> Tensor:
    """``logits + bias.float()``: the bias' gradient is summed over the tokens, then cast back."""
    numel, itemsize, learns = bias.numel, bias.itemsize, bias.trainable
    before = logits.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        of_logits = grad if grad.itemsize == before else t.new(grad.numel, before)
        return of_logits, t.new(numel, itemsize, "gradients") if learns else None

    edges = (logits.node, bias if learns else None)
    return t.record(t.new(logits.numel, FP32_BYTES), edges, backward)


def entropy_beside_loss(t: Tape, logits: Tensor, labels: Tensor) -> Tensor:
    """log_softmax, its loss, and its exponential times itself for the entropy."""
    scores = log_softmax(t, cast(t, logits, FP32_BYTES))
    loss = nll_loss(t, scores, labels)
    probabilities = t.new(scores.numel, scores.itemsize)
    product = t.new(scores.numel, scores.itemsize)
    del probabilities, product
    return loss
