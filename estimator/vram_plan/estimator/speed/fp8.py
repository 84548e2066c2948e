"""Linear layers of a block in 8 bits: faster products, and the casts that they take.

Products of two fp8 factors run at the fp8 peak and write 16 bits. Head, embedding and attention
stay in 16 bits (Megatron-LM's output layer is no layer of Transformer Engine; torchtitan leaves
``output`` out of its conversion). Every factor is cast first, at the bandwidth of the memory:

* Transformer Engine (NVIDIA/TransformerEngine ``transformer_engine/pytorch/module/linear.py``)
  casts inputs going forward and gradients going back, each by one kernel that reads 16 bits and
  writes 8 twice: as it is and transposed, since Hopper's products take both factors by rows.
  Weights are cast once a step (``is_first_microbatch``). Current scaling reads everything once more
  for the largest value; delayed scaling has it from the steps before.
* torchao (pytorch/ao @ 024fe94f ``torchao/float8/float8_linear.py``), scales by tensor
  (``manual_float8_matmul_with_args_in_float8``): a read for the largest value, a read and a write
  for the cast, of the input, of the weight (its largest value comes with FSDP's gather) and of the
  gradient; the weight's gradient takes both of its factors transposed, read and written in 8 bits.
  By row (``manual_float8_matmul_with_args_in_hp``) every product casts its own factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vram_plan.estimator.speed.step_time import StepWork
from vram_plan.estimator.speed.work import Kernel, Work

__all__ = ["BY_ROW", "BY_TENSOR", "CURRENT", "DELAYED", "Recipe", "in_fp8"]

_HALF, _NARROW = 2, 1
_PADDING = 256
"""Rows that a vocabulary may be padded by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Bytes read and written for each element that is cast.

    Attributes:
        inputs: of an input going forward.
        weights: of a weight going forward.
        gradients: of a gradient, for the gradient of the input.
        inputs_again: of the input once more, for the gradient of the weight.
        weights_again: of the weight once more, for the gradient of the input.
        gradients_again: of the gradient once more, for the gradient of the weight.
        kept: weights are cast once for all micro-batches of a step.
    """

    inputs: float
    weights: float
    gradients: float
    inputs_again: float = 0.0
    weights_again: float = 0.0
    gradients_again: float = 0.0
    kept: bool = False


DELAYED = Recipe(inputs=4.0, weights=4.0, gradients=4.0, kept=True)
"""Transformer Engine: 2 read, 1 written, 1 written transposed."""
CURRENT = Recipe(inputs=6.0, weights=6.0, gradients=6.0, kept=True)
BY_TENSOR = Recipe(inputs=5.0, weights=3.0, gradients=5.0, inputs_again=2.0, gradients_again=2.0)
"""torchao: 2 read for the scale, 2 read and 1 written for the cast."""
BY_ROW = Recipe(
    inputs=5.0,
    weights=5.0,
    gradients=5.0,
    inputs_again=5.0,
    weights_again=5.0,
    gradients_again=5.0,
)


def in_fp8(work: StepWork, recipe: Recipe) -> StepWork:
    """The same step with the blocks' linear layers in fp8."""
    return replace(
        work,
        stages=tuple(tuple(_kernels(work, stage, recipe)) for stage in work.stages),
        whole=tuple(_kernels(work, work.whole, recipe)),
    )


def _kernels(work: StepWork, kernels: Work, recipe: Recipe) -> Iterator[tuple[Kernel, int]]:
    config = work.config
    columns = -(-config.model.vocab_size // config.tp)
    tokens = config.micro_batch * -(-config.seq_len // config.cp)
    waves = config.grad_accum if recipe.kept else 1
    for kernel, count in kernels:
        if kernel.kind != "matmul" or kernel.itemsize != _HALF or _of_head(kernel, columns):
            yield kernel, count
            continue
        batch, rows, inner, out = kernel.shape
        moved = _NARROW * (rows * inner + inner * out) + _HALF * rows * out
        yield replace(kernel, itemsize=_NARROW, bytes=float(batch * moved)), count
        cast = _cast(kernel, tokens, waves, recipe)
        if cast:
            yield Kernel(phase=kernel.phase, kind="memory", bytes=cast), count


def _of_head(kernel: Kernel, columns: int) -> bool:
    return any(columns <= size < columns + _PADDING for size in kernel.shape[1:])


def _cast(kernel: Kernel, tokens: int, waves: int, recipe: Recipe) -> float:
    """Bytes moved to cast the factors of a product."""
    batch, rows, inner, out = kernel.shape
    left, right = batch * rows * inner, batch * inner * out
    if kernel.phase != "backward":
        return recipe.inputs * left + recipe.weights * right / waves
    of_input = recipe.gradients * left + recipe.weights_again * right
    of_weight = recipe.gradients_again * left + recipe.inputs_again * right
    if rows == inner == tokens:  # either of the two: as many of each
        return (of_input + of_weight) / 2
    return of_weight if inner == tokens else of_input
