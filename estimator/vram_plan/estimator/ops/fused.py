"""Kernels that replace written-out operations: norm, rotary embedding and gated activation.

linkedin/Liger-Kernel 0.6.2 ``liger_kernel/ops/{rms_norm,rope,swiglu}.py``. Each works on its
incoming gradient, or on what it saved, in place.
"""

from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.tape import Param, Tape, Tensor

PROCESSORS = 132
"""Rows of partial weight gradients, one for each multiprocessor (NVIDIA H100 SXM data sheet)."""


def rms_norm(t: Tape, x: Tensor, weight: Param | None, width: int) -> Tensor:
    """``LigerRMSNormFunction``: keeps its input and 1/RMS per token; dX is written over dY."""
    out = t.new(x.numel, x.itemsize)
    rstd = t.new(x.numel // width, FP32_BYTES)
    trained = (weight,) if weight is not None and weight.trainable else ()
    kept = (x.storage, rstd.storage)
    numel, itemsize, needs = x.numel, x.itemsize, x.requires_grad

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        if t.work is not None:
            t.work.in_place(3 * numel * itemsize)
        partial = t.new(PROCESSORS * width, FP32_BYTES)
        made = [t.new(p.numel, p.itemsize, "gradients") for p in trained]
        del partial
        return (grad if needs else None, *made)

    return t.record(out, (x.node, *trained), backward)


def rotate(t: Tape, x: Tensor) -> Tensor:
    """``LigerRopeFunction``: turns queries or keys where they lie, and their gradient too."""
    out = Tensor(x.numel, x.itemsize, x.storage)
    out.by_token = x.by_token
    numel, itemsize = x.numel, x.itemsize
    if t.work is not None:
        t.work.in_place(2 * numel * itemsize)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        if t.work is not None:
            t.work.in_place(2 * numel * itemsize)
        if grad.by_token:
            return (grad,)
        laid = t.new(numel, itemsize)
        laid.by_token = True
        return (laid,)

    return t.record(out, (x.node,), backward, packs=True)


def swiglu(t: Tape, gate: Tensor, up: Tensor) -> Tensor:
    """``LigerSiLUMulFunction``: keeps both inputs and writes their gradients over them."""
    out = t.new(gate.numel, gate.itemsize)
    kept = (gate.storage, up.storage)
    numel, itemsize = gate.numel, gate.itemsize

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        if t.work is not None:
            t.work.in_place(5 * numel * itemsize)
        return tuple(Tensor(numel, itemsize, storage) for storage in kept)

    return t.record(out, (gate.node, up.node), backward)
