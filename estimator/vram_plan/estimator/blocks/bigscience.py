"""A dense decoder as BigScience's Megatron-DeepSpeed builds it (engine ``megatron-deepspeed``).

Megatron-LM's blocks; the loss is the fork's own: ``megatron/model/gpt_model.py`` ``CrossEntropy``
makes fp32 logits, and ``megatron/mpu/cross_entropy.py`` ``vocab_parallel_cross_entropy`` copies
them once more, so that backward hooks work, before they become the softmax in place
(bigscience-workshop/Megatron-DeepSpeed @ 17e45367, pull request 155).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vram_plan.estimator.blocks import megatron
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.elementwise import FP32_BYTES
from vram_plan.estimator.segment import Composition
from vram_plan.estimator.tape import Tape, Tensor
from vram_plan.profiles.model import ModelSpec

is_built = megatron.is_built


def compose(spec: ModelSpec) -> Composition:
    """``GPTModelPipe``."""
    common = megatron.compose(spec)
    *others, last = common.segments
    return replace(common, segments=(*others, replace(last, run=head)))


def head(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
    """The last norm, the vocabulary-parallel projection and the fork's cross-entropy."""
    logits = megatron.vocabulary_logits(f, x)
    with f.t.scope("logits"):
        return cloned_loss(f.t, logits)


def cloned_loss(t: Tape, logits: Tensor) -> Tensor:
    """fp32 logits and their copy, which is kept as the softmax and becomes the gradient."""
    numel, itemsize = logits.numel, logits.itemsize
    wide = t.new(numel, FP32_BYTES)
    kept = t.new(numel, FP32_BYTES).storage
    del wide
    out = t.new(1, FP32_BYTES)

    def backward(grad: Tensor) -> tuple[Tensor | None, ...]:
        _ = kept
        return (t.new(numel, itemsize),)

    return t.record(out, (logits.node,), backward)
