"""The precisions of a row: of its products, its weights and its optimizer's states.

8-bit products are torchao's under torchtitan, scaled by tensor unless the notes say by row, and
Transformer Engine's elsewhere: delayed scaling unless the notes name another recipe. ``mxfp8`` is a
recipe of fp8.
"""

from __future__ import annotations

from typing import Any

from vram_plan.estimator import choices
from vram_plan.profiles.measured_row import Row
from vram_plan.profiles.model import ModelSpec
from vram_plan.reports.validate.source_facts import AUTOCASTS, FP8_RECIPES, FP8_WEIGHTS

__all__ = ["precision_of_row", "recipe_of_row"]

Options = dict[str, Any]

_PRECISIONS = {"tf32": "fp32", "mxfp8": "fp8"}
_TORCHAO = frozenset({"torchtitan", "torchtune"})
_SAID = {
    "blockwise": "te-blockwise",
    "tensorwise": "te-current",
    "current scaling": "te-current",
    "mxfp8": "te-mxfp8",
}
"""Megatron-LM's ``--fp8-recipe``, as notes say it → the plan's word."""


def precision_of_row(row: Row, model: ModelSpec) -> Options:
    """Options of a row that name a dtype.

    Raises:
        ValueError: naming the dtype that cannot be planned.
    """
    precision = _PRECISIONS.get(row.precision or "", row.precision)
    if precision is not None and precision not in choices.PRECISIONS:
        raise ValueError(f"precision {precision} cannot be planned")
    if row.weights_dtype is not None and row.weights_dtype not in choices.WEIGHTS_DTYPES:
        raise ValueError(f"weights dtype {row.weights_dtype} cannot be planned")
    _wide_states(row)
    options: Options = {"amp": _amp(row)}
    if row.engine == "megatron" and row.state_dtype in choices.STATE_DTYPES:
        options["state_dtype"] = row.state_dtype
    if precision == "fp8":
        options["fp8_recipe"] = recipe_of_row(row)
    weights = "fp8" if _source_file(row) in FP8_WEIGHTS and precision == "fp8" else None
    return options | {"precision": precision, "weights_dtype": weights or row.weights_dtype}


def recipe_of_row(row: Row) -> str:
    """The recipe of a row's 8-bit products."""
    notes = (row.notes or "").lower()
    if row.trainer in _TORCHAO:
        return "ao-rowwise" if "rowwise" in notes else "ao-tensorwise"
    if row.precision == "mxfp8":
        return "te-mxfp8"
    stated = FP8_RECIPES.get(_source_file(row)) or FP8_RECIPES.get(row.trainer or "")
    said = (word for name, word in _SAID.items() if name in notes)
    return next(said, None) or stated or "te-delayed"


def _source_file(row: Row) -> str:
    """The file in its repository that a row was read from."""
    return (row.source or "").rpartition(":")[2]


def _amp(row: Row) -> bool | None:
    if row.autocast is None and row.trainer in AUTOCASTS:
        return True if row.engine in {"torch", "ddp", "device-map", "ddp+device-map"} else None
    return row.autocast


def _wide_states(row: Row) -> None:
    """Refuse narrow master weights or moments under engines that are planned to hold fp32 ones."""
    if row.engine not in choices.ZERO_ENGINES:
        return
    names = ("master_dtype",) if row.engine == "megatron" else ("master_dtype", "state_dtype")
    for name in names:
        if getattr(row, name) not in {None, "fp32"}:
            said = name.replace("_", " ")
            raise ValueError(f"{said} {getattr(row, name)} with {row.engine} cannot be planned")
