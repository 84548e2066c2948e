"""Optimizer states and what the optimizer step makes on the way.

States are in the dtype of the weight they belong to (``torch.zeros_like(p)`` in torch 2.13.0
``torch/optim``), except where a library fixes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vram_plan.estimator.inventory import Weight

BNB_BLOCK = 256
BNB_SMALLEST = 4096
"""bitsandbytes 0.50.2 ``optim/optimizer.py``: block-wise 8-bit states, fp32 below 4,096 elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What an optimizer holds and what its step adds.

    Attributes:
        nbytes: states between steps.
        step: largest temporary of the step.
        formula: how ``nbytes`` comes about, for one parameter.
        step_formula: the same for ``step``.
        source: library file and version.
        paged: states are in memory that the driver moves to the host when the GPU is full.
    """

    nbytes: int
    step: int
    formula: str
    step_formula: str
    source: str
    paged: bool = False


def optimizer_states(
    name: str, weights: Iterable[Weight], *, itemsize: int | None = None, scale: float = 1.0
) -> States:
    """States for trainable ``weights``; ``itemsize`` overrides their dtype (fp32 masters)."""
    groups = [(w, itemsize or w.itemsize) for w in weights if w.trainable]
    return _OPTIMIZERS[name](groups, scale)


Groups = list[tuple[Weight, int]]


def _total(groups: Groups, scale: float) -> int:
    return round(sum(w.numel * w.count * size * (1.0 if w.added else scale) for w, size in groups))


def _largest(groups: Groups) -> int:
    return max((w.numel * size for w, size in groups), default=0)


def _adamw(groups: Groups, scale: float) -> States:
    total = _total(groups, scale)
    return States(
        nbytes=2 * total,
        step=total,
        formula="2 moments in the weights' dtype",
        step_formula="foreach: the square root of every second moment at once",
        source="torch 2.13.0 torch/optim/adam.py _multi_tensor_adam",
    )


def _adamw_fused(groups: Groups, scale: float) -> States:
    return States(
        nbytes=2 * _total(groups, scale),
        step=0,
        formula="2 moments in the weights' dtype",
        step_formula="fused kernel: nothing",
        source="torch 2.13.0 torch/optim/adam.py _fused_adam",
    )


def _adamw_for_loop(groups: Groups, scale: float) -> States:
    return States(
        nbytes=2 * _total(groups, scale),
        step=2 * _largest(groups),
        formula="2 moments in the weights' dtype",
        step_formula="one weight at a time: √v and √v / bias correction of the largest",
        source="torch 2.13.0 torch/optim/adam.py _single_tensor_adam",
    )


def _adamw_8bit(groups: Groups, scale: float, *, paged: bool = False) -> States:
    total = 0.0
    for w, _ in groups:
        factor = w.count * (1.0 if w.added else scale)
        if w.numel < BNB_SMALLEST:
            total += 2 * 4 * w.numel * factor
        else:
            total += 2 * (w.numel + 4 * -(-w.numel // BNB_BLOCK)) * factor
    return States(
        nbytes=round(total) + 2 * 256 * 4,
        step=0,
        formula="2 moments of 1 byte, an fp32 scale per 256; fp32 below 4,096 elements",
        step_formula="in place",
        source="bitsandbytes 0.50.2 optim/optimizer.py Optimizer2State",
        paged=paged,
    )


def _paged_adamw(groups: Groups, scale: float) -> States:
    elements = _total([(w, 1) for w, _ in groups], scale)
    return States(
        nbytes=2 * 4 * elements,
        step=0,
        formula="2 fp32 moments in managed memory",
        step_formula="in place",
        source="bitsandbytes 0.50.2 optim/adamw.py PagedAdamW32bit",
        paged=True,
    )


def _paged_adamw_8bit(groups: Groups, scale: float) -> States:
    return _adamw_8bit(groups, scale, paged=True)


def _adafactor(groups: Groups, scale: float) -> States:
    total = 0.0
    for w, _ in groups:
        rows, columns = w.shape if len(w.shape) >= 2 else (w.numel, 0)
        each = rows + columns if columns else w.numel
        total += 4 * each * w.count * (1.0 if w.added else scale)
    return States(
        nbytes=round(total),
        step=3 * 4 * max((w.numel for w, _ in groups), default=0),
        formula="fp32 row and column sums of a matrix; a full fp32 second moment of a vector",
        step_formula="fp32 gradient, update and weight copy of the largest weight",
        source="transformers 5.23.0 optimization.py Adafactor",
    )


def _lion(groups: Groups, scale: float) -> States:
    elements = _total([(w, 1) for w, _ in groups], scale)
    return States(
        nbytes=4 * elements,
        step=0,
        formula="1 fp32 momentum",
        step_formula="in place",
        source="bitsandbytes 0.50.2 optim/lion.py Lion32bit",
    )


def _sgd(groups: Groups, scale: float) -> States:
    return States(
        nbytes=0,
        step=0,
        formula="none",
        step_formula="foreach add in place",
        source="torch 2.13.0 torch/optim/sgd.py _multi_tensor_sgd",
    )


def _sgd_momentum(groups: Groups, scale: float) -> States:
    return States(
        nbytes=_total(groups, scale),
        step=0,
        formula="1 momentum in the weights' dtype",
        step_formula="foreach in place",
        source="torch 2.13.0 torch/optim/sgd.py _multi_tensor_sgd",
    )


def _rmsprop(groups: Groups, scale: float) -> States:
    total = _total(groups, scale)
    return States(
        nbytes=total,
        step=total,
        formula="1 second moment in the weights' dtype",
        step_formula="foreach: the square root of every second moment at once",
        source="torch 2.13.0 torch/optim/rmsprop.py _multi_tensor_rmsprop",
    )


_OPTIMIZERS = {
    "adamw": _adamw,
    "adamw-fused": _adamw_fused,
    "adamw-for-loop": _adamw_for_loop,
    "adamw-8bit": _adamw_8bit,
    "paged-adamw": _paged_adamw,
    "paged-adamw-8bit": _paged_adamw_8bit,
    "adafactor": _adafactor,
    "lion": _lion,
    "sgd": _sgd,
    "sgd-momentum": _sgd_momentum,
    "rmsprop": _rmsprop,
}
