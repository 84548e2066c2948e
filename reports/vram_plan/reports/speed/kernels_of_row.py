"""Which kernels a row ran with, where its source says so outside the table.

llm-foundry's tables were made by its ``scripts/train/benchmarking/submit_benchmarks.py``, whose
``--attn_impl`` is ``triton`` unless another is given (@ c6cfb428, b2a43a14 and 5e85bd62); the
commands of ``sweep.sh`` give none. Those of the table for 128 H100 and more are in ``sweep.py`` (@
5e85bd62): ``flash``, by then flash-attn 2.4.2, but for 13b and 30b.

Recipes of NeMo and of Megatron-Bridge divide the sequence among the tensor ranks (NVIDIA/NeMo @
0189a3b3 ``nemo/collections/llm/recipes``).
"""

from __future__ import annotations

from vram_plan.estimator.speed.flash import TRITON
from vram_plan.estimator.speed.fp8 import Recipe, recipe_named
from vram_plan.profiles.gpus import GpuSpec
from vram_plan.profiles.measured import Row
from vram_plan.profiles.stack import Stack
from vram_plan.reports.validate.precision_of_row import recipe_of_row as name_of_recipe

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
    """How a row casts to 8 or 4 bits; None where it does not.

    Raises:
        ValueError: on cards that have no such products.
    """
    if row.precision not in {"fp8", "mxfp8", "nvfp4"}:
        return None
    name = "te-nvfp4" if row.precision == "nvfp4" else name_of_recipe(row)
    engine = (row.engine or "").startswith("megatron")
    recipe = recipe_named(name, gpu, kept=engine, compiled=True)
    if recipe.dtype not in gpu.peak_flops:
        raise ValueError(f"{gpu.name} has no {recipe.dtype} products")
    return recipe
