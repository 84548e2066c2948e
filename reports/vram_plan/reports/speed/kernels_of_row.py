"""Which kernels a row ran with, where its source says so outside the table.

llm-foundry's tables were made by its ``scripts/train/benchmarking/submit_benchmarks.py``, whose
``--attn_impl`` is ``triton`` unless another is given (@ c6cfb428, b2a43a14 and 5e85bd62); the
commands of ``sweep.sh`` give none. Those of the table for 128 H100 and more are in ``sweep.py`` (@
5e85bd62): ``flash``, by then flash-attn 2.4.2, but for 13b and 30b.

Linear layers in fp8 are torchao's under torchtitan, scaled by tensor unless the notes say by row,
and Transformer Engine's elsewhere: with delayed scaling (its default, NeMo's and Composer's), in
Megatron-Bridge's tables with current scaling (``FP8-CS``). Recipes of both trainers divide the
sequence among the tensor ranks (NVIDIA/NeMo @ 0189a3b3 ``nemo/collections/llm/recipes``).
"""

from __future__ import annotations

from vram_plan.estimator.speed.flash import TRITON
from vram_plan.estimator.speed.fp8 import BY_ROW, BY_TENSOR, CURRENT, DELAYED, Recipe
from vram_plan.profiles.gpus import GpuSpec
from vram_plan.profiles.measured import Row
from vram_plan.profiles.stack import Stack

__all__ = ["divides_sequence", "recipe_of_row", "with_kernels"]

_TRAINER = "composer"
_LARGE = "(Large Scale"
_LARGE_TRITON = ("13b", "30b")
_NEMO = frozenset({"nemo", "megatron-bridge"})


def with_kernels(row: Row, stack: Stack) -> Stack:
    """The stack of a row, with its attention kernels where they are known to be others."""
    if row.trainer != _TRAINER or row.attention not in {None, "flash"}:
        return stack
    if _LARGE in (row.notes or "") and not (row.model or "").endswith(_LARGE_TRITON):
        return stack
    return Stack((*stack.given, ("flash-attn", TRITON)))


def divides_sequence(row: Row) -> bool:
    """Whether a row's recipe turns sequence parallelism on that its table does not mention."""
    return row.trainer in _NEMO and (row.tensor_parallel or 1) > 1


def recipe_of_row(row: Row, gpu: GpuSpec) -> Recipe | None:
    """How a row casts to fp8; None where it does not.

    Raises:
        ValueError: on cards of which no 16-bit row says what anything reaches.
    """
    if row.precision != "fp8":
        return None
    if gpu.architecture != "Hopper":
        raise ValueError(f"fp8 products of {gpu.architecture} are not timed")
    if row.trainer == "torchtitan":
        return BY_ROW if "rowwise" in (row.notes or "") else BY_TENSOR
    return CURRENT if row.trainer == "megatron-bridge" else DELAYED
