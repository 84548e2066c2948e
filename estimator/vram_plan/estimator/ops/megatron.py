"""Operators of Megatron-LM with Transformer Engine: fused norms and products, split over ranks.

Megatron-LM @ d98e8a64 ``megatron/core/extensions/transformer_engine.py``,
``megatron/core/tensor_parallel/layers.py``, ``megatron/core/fusions``; Transformer Engine
``transformer_engine/pytorch/module/{layernorm_linear,linear}.py``. A weight's gradient is added to
the main gradients as soon as it is there, so it lives for a moment only.
"""

from dataclasses import dataclass

from vram_plan.estimator.ops.attention import Heads, batched_product, repeat_heads
from vram_plan.estimator.ops.elementwise import FP32_BYTES, copy, dropout
from vram_plan.estimator.tape import Param, Tape, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a layer is divided.

    Attributes:
        ranks: tensor-parallel ranks.
        sequence: what passes between layers is divided by tokens too (sequence parallelism):
            gathered before a product by columns, scattered after one by rows.
    """

    ranks: int = 1
    sequence: bool = False

    @property
    def gathers(self) -> bool:
        """Whether tokens are gathered and scattered."""
        return self.sequence and self.ranks > 1


def norm(t: Tape, x: Tensor, weights: tuple[Param, ...], width: int) -> Tensor:
    """A fused norm: keeps its input and fp32 statistics per token (two for a layer norm)."""
    out, stats = _normalize(t, x, len(weights), width)
    kept = (x.storage, stats.storage)
    numel, itemsize = x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize), *_gradients(t, weights))

    return t.record(out, (x.node, *_learning(weights)), backward)


def norm_linear(
    t: Tape, x: Tensor, scale: tuple[Param, ...], weights: tuple[Param, ...], split: Split
) -> Tensor:
    """Norm and product by columns in one module: keeps input, normed input and statistics.

    With sequence parallelism the normed input is gathered for the product, and again going back.
    """
    weight = weights[0]
    outputs, width = weight.shape
    normed, stats = _normalize(t, x, len(scale), width)
    times = split.ranks if split.gathers else 1
    whole = t.new(normed.numel * times, x.itemsize) if split.gathers else normed
    tokens = normed.numel * times // width
    out = t.new(tokens * outputs, x.itemsize)
    if t.work is not None:
        t.work.product((tokens, width, outputs), x.itemsize)
    del whole
    kept = (x.storage, normed.storage, stats.storage)
    numel, itemsize = x.numel, x.itemsize
    del normed, stats

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        gathered = t.new(numel * times, itemsize) if split.gathers else None
        inner = t.new(numel * times, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, width), itemsize)
        scattered = t.new(numel, itemsize) if split.gathers else inner
        made = _weight_gradients(t, weights, tokens)
        del gathered, inner
        dx = t.new(numel, itemsize)
        del scattered
        return (dx, *made, *_gradients(t, scale))

    edges = (x.node, *_learning(weights), *_learning(scale))
    return t.record(out, edges, backward, packs=True)


def column_linear(t: Tape, x: Tensor, weights: tuple[Param, ...], split: Split) -> Tensor:
    """A product by columns alone: keeps its input, gathered anew each way under ``sequence``."""
    outputs, width = weights[0].shape
    times = split.ranks if split.gathers else 1
    numel, itemsize, kept = x.numel, x.itemsize, x.storage
    tokens = numel * times // width
    whole = t.new(numel * times, itemsize) if split.gathers else x
    out = t.new(tokens * outputs, itemsize)
    if t.work is not None:
        t.work.product((tokens, width, outputs), itemsize)
    del whole

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        gathered = t.new(numel * times, itemsize) if split.gathers else None
        inner = t.new(numel * times, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, width), itemsize)
        dx = t.new(numel, itemsize) if split.gathers else inner
        made = _weight_gradients(t, weights, tokens)
        del gathered, inner
        return (dx, *made)

    return t.record(out, (x.node, *_learning(weights)), backward, packs=True)


def row_linear(t: Tape, x: Tensor, weights: tuple[Param, ...], split: Split) -> Tensor:
    """A product by rows: keeps its input; the sum over ranks is reduced, or scattered by tokens."""
    weight = weights[0]
    outputs, inputs = weight.shape
    tokens = x.numel // inputs
    times = split.ranks if split.gathers else 1
    summed = t.new(tokens * outputs, x.itemsize)
    if t.work is not None:
        t.work.product((tokens, inputs, outputs), x.itemsize)
    out = t.new(tokens * outputs // times, x.itemsize) if split.gathers else summed
    del summed
    kept = x.storage
    numel, itemsize = x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        gathered = t.new(tokens * outputs, itemsize) if split.gathers else None
        dx = t.new(numel, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, inputs), itemsize)
        made = _weight_gradients(t, weights, tokens)
        del gathered
        return (dx, *made)

    return t.record(out, (x.node, *_learning(weights)), backward, packs=True)


def split_projections(t: Tape, x: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Queries, keys and values out of one projection: copies; their gradients are joined.

    ``megatron/core/transformer/attention.py`` ``get_query_key_value_tensors`` (groups lie between
    each other, so each part is copied once before the kernel).
    """
    full, itemsize = x.numel, x.itemsize
    waiting: list[Tensor] = []

    def join(grad: Tensor) -> tuple[Tensor | None, ...]:
        joined = t.new(full, itemsize)
        waiting.clear()
        return (joined,)

    def wait(grad: Tensor) -> tuple[Tensor | None, ...]:
        waiting.append(grad)
        return (None,)

    parts = []
    for i, size in enumerate(sizes):
        part = t.new(size, itemsize)
        part.by_token = True
        # Nodes go back in reverse order: the first part's comes last and joins.
        parts.append(t.record(part, (x.node,), wait if i else join))
    return parts


def rotate(t: Tape, x: Tensor) -> Tensor:
    """The fused rotary kernel: a new tensor, nothing kept."""
    out = t.new(x.numel, x.itemsize)
    out.by_token = True
    numel, itemsize = x.numel, x.itemsize
    return t.record(out, (x.node,), lambda grad: (t.new(numel, itemsize),))


def unfused_attention(t: Tape, q: Tensor, k: Tensor, v: Tensor, s: Heads) -> Tensor:
    """Scores written out: product, one fused kernel for scale, mask and softmax, dropout, product.

    ``megatron/core/fusions/fused_softmax.py``: scores and probabilities stay in 16 bits; the
    softmax keeps its output. ``megatron/core/transformer/dot_product_attention.py``.
    """
    k, v = repeat_heads(t, k, s), repeat_heads(t, v, s)
    scores = batched_product(t, q, k, s.scores, s.head_dim)
    probabilities = dropout(t, _softmax(t, scores), s.dropout)
    del scores
    size = s.batch * s.heads * s.seq * s.value_dim
    out = batched_product(t, probabilities, v, size, s.kv_seq)
    return copy(t, out)


def _softmax(t: Tape, x: Tensor) -> Tensor:
    out = t.new(x.numel, x.itemsize)
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (grad,)  # the kernel writes over the incoming gradient

    return t.record(out, (x.node,), backward)


def activate(t: Tape, x: Tensor, numel: int) -> Tensor:
    """A fused activation (bias-GeLU, SwiGLU, squared ReLU): keeps its input."""
    out = t.new(numel, x.itemsize)
    kept, wide, itemsize = x.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(wide, itemsize),)

    return t.record(out, (x.node,), backward)


def dropout_add(t: Tape, x: Tensor, residual: Tensor, probability: float) -> Tensor:
    """Bias, dropout and the residual in one kernel: keeps a mask of one byte an element."""
    out = t.new(residual.numel, residual.itemsize)
    if not probability or not t.training:
        return t.record(out, (x.node, residual.node), lambda grad: (grad, grad))
    kept = t.new(x.numel, 1).storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return t.new(grad.numel, grad.itemsize), grad

    return t.record(out, (x.node, residual.node), backward)


def scatter_tokens(t: Tape, x: Tensor, split: Split) -> Tensor:
    """One rank's tokens of the embedding, cloned; their gradient is gathered."""
    full, itemsize = x.numel, x.itemsize
    out = t.new(full // split.ranks, itemsize)
    return t.record(out, (x.node,), lambda grad: (t.new(full, itemsize),))


def head_linear(t: Tape, x: Tensor, weight: Param, split: Split) -> Tensor:
    """The product with the vocabulary: keeps its input; gathered tokens go to a lasting buffer.

    ``LinearWithGradAccumulationAndAsyncCommunication``: the buffer is ``GlobalMemoryBuffer``'s.
    """
    outputs, width = weight.shape
    times = split.ranks if split.gathers else 1
    tokens = x.numel * times // width
    out = t.new(tokens * outputs, x.itemsize)
    if t.work is not None:
        t.work.product((tokens, width, outputs), x.itemsize)
    kept, numel, itemsize = x.storage, x.numel, x.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel * times, itemsize)
        if t.work is not None:
            t.work.product((tokens, outputs, width), itemsize)
        scattered = t.new(numel, itemsize) if split.gathers else dx
        made = _weight_gradients(t, (weight,), tokens)
        del dx
        return (scattered, *made)

    return t.record(out, (x.node, *_learning((weight,))), backward, packs=True)


def vocabulary_loss(t: Tape, logits: Tensor, *, compiled: bool = False) -> Tensor:
    """``vocab_parallel_cross_entropy``: fp32 logits that become softmax and gradient in place.

    ``megatron/core/tensor_parallel/cross_entropy.py``; going back, the gradient is cast to the
    logits' dtype. ``compiled`` (``--cross-entropy-loss-fusion``, ``fused_cross_entropy.py``):
    the same lines under ``torch.compile``, which writes the gradient into a copy of the softmax
    first (the code that inductor of torch 2.13.0 makes of it has a second fp32 buffer).
    """
    numel, itemsize = logits.numel, logits.itemsize
    kept = t.new(numel, FP32_BYTES).storage
    out = t.new(1, FP32_BYTES)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        copied = t.new(numel, FP32_BYTES) if compiled else None
        made = t.new(numel, itemsize)
        del copied
        return (made,)

    return t.record(out, (logits.node,), backward)


def _normalize(t: Tape, x: Tensor, parts: int, width: int) -> tuple[Tensor, Tensor]:
    stats = t.new(x.numel // width * max(parts, 1), FP32_BYTES)
    return t.new(x.numel, x.itemsize), stats


def _learning(weights: tuple[Param, ...]) -> tuple[Param, ...]:
    return tuple(weight for weight in weights if weight.trainable)


def _weight_gradients(t: Tape, weights: tuple[Param, ...], tokens: int) -> list[Tensor]:
    """Gradients of a product's weight [outputs, inputs] and of its bias."""
    made = _gradients(t, weights)
    if t.work is not None and weights[0].trainable:
        outputs, inputs = weights[0].shape
        t.work.product((outputs, tokens, inputs), weights[0].itemsize)
    return made


def _gradients(t: Tape, weights: tuple[Param, ...]) -> list[Tensor]:
    return [t.new(w.numel, w.itemsize, "gradients") for w in _learning(weights)]
