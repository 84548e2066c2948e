"""Layer normalisations: the fused operator and the RMS norms that libraries write out."""

from vram_plan.estimator.ops.elementwise import (
    FP32_BYTES,
    cast,
    mul,
    power,
    reduce_last,
    shift,
    subtract,
    weight_product,
)
from vram_plan.estimator.tape import Param, Tape, Tensor


def layer_norm(t: Tape, x: Tensor, weight: Param | None, bias: Param | None, width: int) -> Tensor:
    """``torch.nn.LayerNorm``: saves its input and an fp32 mean and rstd per token.

    ``native_layer_norm`` in derivatives.yaml; the CUDA kernel keeps mean and rstd in fp32 for
    16-bit inputs (``aten/src/ATen/native/cuda/layer_norm_kernel.cu``).
    """
    rows = x.numel // width
    out = t.new(x.numel, x.itemsize)
    trained = tuple(p for p in (weight, bias) if p is not None and p.trainable)
    if not t.needs(x.node, *trained):
        return out
    mean, rstd = t.new(rows, FP32_BYTES), t.new(rows, FP32_BYTES)
    kept = (x.storage, mean.storage, rstd.storage)
    numel, itemsize, needs = x.numel, x.itemsize, x.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        dx = t.new(numel, itemsize) if needs else None
        return (dx, *(t.new(p.numel, p.itemsize, "gradients") for p in trained))

    saves = (x, mean, rstd, weight, bias)
    return t.record(out, (x.node, *trained), backward, saves=saves)


def rms_norm(t: Tape, x: Tensor, weight: Param | None, width: int) -> Tensor:
    """``weight * (x.float() * rsqrt(mean(x.float()²) + ε)).to(dtype)``: LlamaRMSNorm.

    transformers 5.23.0 ``models/llama/modeling_llama.py``. Left out: the fused kernels from the
    hub, which are off unless asked for.
    """
    itemsize, by_token = x.itemsize, x.by_token
    x = cast(t, x, FP32_BYTES)
    variance = reduce_last(t, power(t, x), width)
    x = mul(t, x, _rsqrt(t, shift(t, variance)))
    if weight is None:
        return cast(t, x, itemsize)
    out = weight_product(t, cast(t, x, itemsize), weight)
    out.by_token = by_token
    return out


def rms_norm_wide(
    t: Tape, x: Tensor, weight: Param, width: int, *, centered: bool = False
) -> Tensor:
    """``(weight * x.float() * rsqrt(mean(x.float()²) + ε)).to(dtype)``: the product is fp32.

    Olmo2RMSNorm of transformers 5.23.0 ``models/olmo2/modeling_olmo2.py``. ``centered``: the weight
    counts from one and is cast first, GemmaRMSNorm of ``models/gemma/modeling_gemma.py``.
    """
    itemsize, by_token = x.itemsize, x.by_token
    wide = cast(t, x, FP32_BYTES)
    if centered:
        normed = mul(t, wide, _rsqrt(t, shift(t, reduce_last(t, power(t, wide), width))))
        del wide
        normed = mul(t, normed, _from_one(t, weight))
    else:
        variance = reduce_last(t, power(t, wide), width)
        normed = mul(t, wide, _rsqrt(t, shift(t, variance)))
        del wide
        normed = weight_product(t, normed, weight)
    out = cast(t, normed, itemsize)
    out.by_token = by_token
    return out


def rms_norm_mixed(t: Tape, x: Tensor, weight: Param, width: int, *, wide: bool) -> Tensor:
    """``x * rsqrt(mean(x.float()²) + ε)`` with x itself in 16 bits: two copies of x are kept.

    The product is fp32; it is cast back before the weight (Baichuan's ``modeling_baichuan.py``) or,
    ``wide``, behind it (THUDM's ``modeling_chatglm.py``).
    """
    itemsize, by_token = x.itemsize, x.by_token
    variance = reduce_last(t, power(t, cast(t, x, FP32_BYTES)), width)
    normed = mul(t, x, _rsqrt(t, shift(t, variance)))
    if wide:
        out = cast(t, weight_product(t, normed, weight), itemsize)
    else:
        normed = cast(t, normed, itemsize)
        out = weight_product(t, normed, weight)
    out.by_token = by_token
    return out


def layer_norm_wide(t: Tape, x: Tensor, weight: Param, width: int) -> Tensor:
    """A LayerNorm without bias written out in fp32: CohereLayerNorm.

    transformers 5.23.0 ``models/cohere/modeling_cohere.py``.
    """
    itemsize, by_token = x.itemsize, x.by_token
    x = cast(t, x, FP32_BYTES)
    mean = reduce_last(t, x, width)
    variance = reduce_last(t, power(t, subtract(t, x, mean)), width)
    x = mul(t, subtract(t, x, mean), _rsqrt(t, shift(t, variance)))
    x = mul(t, _widened(t, weight), x)
    return cast(t, x, itemsize, by_token=by_token)


def _widened(t: Tape, weight: Param) -> Tensor:
    """``weight.to(float32)``."""
    numel, itemsize = weight.numel, weight.itemsize
    edge = weight if weight.trainable else None
    if itemsize == FP32_BYTES:
        return t.record(Tensor(numel, itemsize, None), (edge,), lambda grad: (grad,))
    return t.record(
        t.new(numel, FP32_BYTES), (edge,), lambda grad: (t.new(numel, itemsize, "gradients"),)
    )


def _from_one(t: Tape, weight: Param) -> Tensor:
    """``1.0 + weight.float()``."""
    numel, itemsize = weight.numel, weight.itemsize
    wide = t.new(numel, FP32_BYTES) if itemsize != FP32_BYTES else None
    out = t.new(numel, FP32_BYTES)
    del wide

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad if itemsize == FP32_BYTES else t.new(numel, itemsize, "gradients"),)

    return t.record(out, (weight if weight.trainable else None,), backward)


def t5_norm(t: Tape, x: Tensor, weight: Param, width: int) -> Tensor:
    """``weight * (x * rsqrt(mean(x.float()²) + ε)).to(weight.dtype)``: T5LayerNorm.

    transformers 5.23.0 ``models/t5/modeling_t5.py``: x itself is multiplied, not its fp32 copy,
    and the product is cast for 16-bit weights alone.
    """
    variance = reduce_last(t, power(t, cast(t, x, FP32_BYTES)), width)
    x = mul(t, x, _rsqrt(t, shift(t, variance)))
    if weight.itemsize < FP32_BYTES:
        return weight_product(t, cast(t, x, weight.itemsize), weight)
    return weight_product(t, x, weight)


def _rsqrt(t: Tape, x: Tensor) -> Tensor:
    """``rsqrt``: saves its output; ``-0.5 · grad · result³`` makes two temporaries."""
    out = t.new(x.numel, x.itemsize)
    kept = out.storage

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        held = t.new(grad.numel, grad.itemsize), t.new(grad.numel, grad.itemsize)
        result = t.new(grad.numel, grad.itemsize)
        del held
        return (result,)

    return t.record(out, (x.node,), backward)
