"""Linear layers of a block in 8 or 4 bits: faster products, and the casts that they take.

Products of two narrow factors run at the fp8 (fp4) peak and write 16 bits. Head, embedding and
attention stay in 16 bits (Megatron-LM's output layer is no layer of Transformer Engine; torchtitan
leaves ``output`` out of its conversion). Every factor is cast first, at the bandwidth of the
memory:

* Transformer Engine (NVIDIA/TransformerEngine @ d0067d0d ``transformer_engine/pytorch/module/
  linear.py``) casts inputs going forward and gradients going back, each by one kernel that reads 16
  bits and writes what products read: twice, as it is and transposed, where they take both factors
  by rows or where scales are those of blocks (``estimator/fp8.py``), else once. Weights are cast
  once a step under Megatron-LM (``is_first_microbatch``). Current scaling reads everything once
  more for the largest value, NVFP4 for the scale above its blocks' ones; delayed scaling has it
  from the steps before; blocks of fp8 have scales of their own.
* torchao (pytorch/ao @ 024fe94f ``torchao/float8/float8_linear.py``), scales by tensor
  (``manual_float8_matmul_with_args_in_float8``): a read for the largest value, a read and a write
  for the cast, of the input, of the weight (its largest value comes with FSDP's gather) and of the
  gradient; the weight's gradient takes both of its factors transposed, read and written in 8 bits.
  By row (``manual_float8_matmul_with_args_in_hp``) every product casts its own factors. Without a
  compiler each cast is seven kernels, by way of fp32 (``float8_utils.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vram_plan.estimator.fp8 import reads_both_ways
from vram_plan.estimator.speed.roofline import peak_flops
from vram_plan.estimator.speed.work import Kernel, Work

if TYPE_CHECKING:
    from vram_plan.estimator.config import TrainConfig
    from vram_plan.estimator.speed.step_time import StepWork
    from vram_plan.profiles.efficiency import Curves
    from vram_plan.profiles.gpus import GpuSpec

__all__ = ["Recipe", "in_16_bits", "in_fp8", "least_share", "recipe_named", "recipe_of"]

_HALF, _NARROW = 2, 1
_PADDING = 256
"""Rows that a vocabulary may be padded by."""
_EAGER_CAST = 33.0
"""Bytes of a cast written out: absolute values (4), the largest (2), fp32 (6), times the scale (8),
clamped (8), 8 bits (5)."""
_TURNED = 2.0
"""Bytes of a copy in 8 bits."""
_FP4 = 0.5 + 1 / 16
"""Bytes of an element of NVFP4: a scale of one byte for 16 of them."""
_MX = 1 + 1 / 32
_WRITTEN = {"te-mxfp8": _MX, "te-blockwise": 1 + 4 / 128, "te-nvfp4": _FP4}
"""Bytes that a layout takes where it is not one."""
_READ = {"te-current": 4.0, "te-nvfp4": 4.0}
"""Bytes that a cast reads where it is not two: 16 bits, twice."""
_BY_BLOCK = frozenset(_WRITTEN)


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
        dtype: of the factors.
        factor: bytes of an element of a factor, scales included.
    """

    inputs: float
    weights: float
    gradients: float
    inputs_again: float = 0.0
    weights_again: float = 0.0
    gradients_again: float = 0.0
    kept: bool = False
    dtype: str = "fp8"
    factor: float = 1.0


_BY_TENSOR = Recipe(inputs=5.0, weights=3.0, gradients=5.0, inputs_again=2.0, gradients_again=2.0)
"""torchao: 2 read for the scale, 2 read and 1 written for the cast."""
_BY_ROW = Recipe(
    inputs=5.0,
    weights=5.0,
    gradients=5.0,
    inputs_again=5.0,
    weights_again=5.0,
    gradients_again=5.0,
)
_EAGER = Recipe(
    inputs=_EAGER_CAST,
    weights=_EAGER_CAST,
    gradients=_EAGER_CAST,
    inputs_again=_EAGER_CAST + _TURNED,
    weights_again=_EAGER_CAST + _TURNED,
    gradients_again=_EAGER_CAST + _TURNED,
)


def recipe_named(name: str, gpu: GpuSpec | None, *, kept: bool, compiled: bool) -> Recipe:
    """What a recipe casts: one of ``choices.FP8_RECIPES``, or ``te-nvfp4``.

    ``kept``: weights are cast once a step; ``compiled``: torchao's casts are one kernel each.
    """
    if name.startswith("ao-"):
        if not compiled:
            return _EAGER
        return _BY_ROW if name == "ao-rowwise" else _BY_TENSOR
    one = _WRITTEN.get(name, 1.0)
    layouts = 1 if name not in _BY_BLOCK and reads_both_ways(gpu) else 2
    each = _READ.get(name, 2.0) + layouts * one
    dtype = "fp4" if name == "te-nvfp4" else "fp8"
    return Recipe(inputs=each, weights=each, gradients=each, kept=kept, dtype=dtype, factor=one)


def recipe_of(config: TrainConfig) -> Recipe | None:
    """What ``--precision fp8`` casts; None for other precisions."""
    if config.precision != "fp8":
        return None
    return recipe_named(
        config.fp8_recipe,
        config.gpu,
        kept=config.engine == "megatron",
        compiled=bool(config.compile),
    )


def in_16_bits(config: TrainConfig) -> TrainConfig:
    """The same run with products in 16 bits: its kernels are those that casts are added to."""
    if config.precision != "fp8":
        return config
    weights = "bf16" if config.weights_dtype == "fp8" else config.weights_dtype
    return replace(config, precision="bf16", fp8_recipe="none", weights_dtype=weights)


def least_share(config: TrainConfig, gpu: GpuSpec, curves: Curves) -> float:
    """Least share of its seconds in 16 bits that a kernel takes in the configuration's precision.

    A product reads half as much at best and writes as much; its operations run at another peak and
    another share of it. Casts come on top.
    """
    if config.precision != "fp8":
        return 1.0
    sixteen = peak_flops(gpu, _HALF) * curves.matmul
    return min(0.5, sixteen / (peak_flops(gpu, _NARROW, config.precision) * curves.matmul_narrow))


def in_fp8(work: StepWork, recipe: Recipe) -> StepWork:
    """The same step with the blocks' linear layers in 8 or 4 bits."""
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
        moved = batch * (recipe.factor * (rows * inner + inner * out) + _HALF * rows * out)
        yield replace(kernel, itemsize=_NARROW, dtype=recipe.dtype, bytes=float(moved)), count
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
