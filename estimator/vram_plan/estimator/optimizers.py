"""Optimizer states and what the optimizer step makes on the way.

States are in the dtype of the weight they belong to (``torch.zeros_like(p)`` in torch 2.13.0
``torch/optim``), except where a library fixes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.tape import ROUNDING_BYTES

FP32, BF16 = 4, 2
"""Bytes per element."""
BNB_BLOCK = 256
BNB_SMALLEST = 4096
"""bitsandbytes 0.50.2 ``optim/optimizer.py``: 8-bit states in blocks, fp32 below 4,096 elements."""
BNB_PAGED = 100_000
"""The same, ``get_state_buffer``: states of fewer elements are not paged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What an optimizer holds and what its step adds.

    Attributes:
        nbytes: states between steps, on the device.
        step: largest temporary of the step.
        formula: how ``nbytes`` comes about, for one parameter.
        step_formula: the same for ``step``.
        source: library file and version.
        paged: states in memory that the driver moves to the host when the GPU is full.
    """

    nbytes: int
    step: int
    formula: str
    step_formula: str
    source: str
    paged: int = 0


def optimizer_states(
    name: str, weights: Iterable[Weight], *, itemsize: int | None = None, scale: float = 1.0
) -> States:
    """States for trainable ``weights``; ``itemsize`` overrides their dtype (fp32 masters)."""
    groups = [(w, itemsize or w.itemsize) for w in weights if w.trainable]
    return _OPTIMIZERS[name](groups, scale)


Groups = list[tuple[Weight, int]]


def _total(groups: Groups, scale: float) -> int:
    """One tensor like every weight."""
    return round(sum(_sized(w, w.numel * size, scale) for w, size in groups))


def _sized(weight: Weight, nbytes: int, scale: float) -> float:
    """``nbytes`` for each of the weights, rounded up as the allocator does.

    Those of a size class are scaled instead: its shape stands for no tensor in particular.
    """
    if scale != 1.0 and not weight.added:
        return nbytes * weight.count * scale
    return -(-nbytes // ROUNDING_BYTES) * ROUNDING_BYTES * weight.count


def _on_pages(weight: Weight, paged: bool) -> bool:
    return paged and weight.numel >= BNB_PAGED


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
    total, away, maps = 0.0, 0.0, 0
    for w, _ in groups:
        if w.numel < BNB_SMALLEST:
            total += 2 * _sized(w, FP32 * w.numel, scale)
            continue
        maps = 2 * 256 * FP32
        total += 2 * _sized(w, FP32 * -(-w.numel // BNB_BLOCK), scale)
        if _on_pages(w, paged):
            away += 2 * _sized(w, w.numel, scale)
        else:
            total += 2 * _sized(w, w.numel, scale)
    return States(
        nbytes=round(total) + maps,
        step=0,
        formula="2 moments of 1 byte, an fp32 scale per 256; fp32 below 4,096 elements",
        step_formula="in place",
        source="bitsandbytes 0.50.2 optim/optimizer.py Optimizer2State",
        paged=round(away),
    )


def _paged_adamw(groups: Groups, scale: float) -> States:
    wide = [(w, FP32) for w, _ in groups]
    return States(
        nbytes=2 * _total([(w, size) for w, size in wide if not _on_pages(w, True)], scale),
        step=0,
        formula="2 fp32 moments, in managed memory from 100,000 elements on",
        step_formula="in place",
        source="bitsandbytes 0.50.2 optim/adamw.py PagedAdamW32bit",
        paged=2 * _total([(w, size) for w, size in wide if _on_pages(w, True)], scale),
    )


def _paged_adamw_8bit(groups: Groups, scale: float) -> States:
    return _adamw_8bit(groups, scale, paged=True)


def _adafactor(groups: Groups, scale: float) -> States:
    """Row and column sums and a number (``RMS``); one weight at a time.

    Its neighbours' temporaries are not yet dropped.

    16-bit weights: gradient, weight and update in fp32, the square on the way, and the update of
    the weight before, whose name is bound until the new one is there.
    """
    total, step, before = 0.0, 0, 0
    for w, size in groups:
        sums: tuple[int, ...] = (w.numel,)
        if len(w.shape) > 1:
            sums = (w.numel // w.shape[-1], w.numel // w.shape[-2])
        total += sum(_sized(w, FP32 * each, scale) for each in (*sums, 1))
        copies = 4 if size < FP32 else 2
        step = max(step, FP32 * (copies * w.numel + before))
        before = w.numel
    return States(
        nbytes=round(total),
        step=step,
        formula="fp32 row and column sums of a matrix; a full fp32 second moment of a vector",
        step_formula="fp32 gradient, weight, update and square of one weight; the last update",
        source="transformers 5.23.0 optimization.py Adafactor.step",
    )


def _muon(groups: Groups, scale: float) -> States:
    """Momentum for the blocks' matrices; AdamW for embeddings, head, norms and biases.

    ``torch.optim.Muon`` takes matrices only and its documentation gives the others to AdamW.
    Newton-Schulz: the update, its bf16 copy where it is fp32, the Gram matrix and its polynomial
    (both of the shorter side) and the next iterate.
    """
    matrices = [(w, size) for w, size in groups if is_hidden(w)]
    others = [(w, size) for w, size in groups if not is_hidden(w)]
    rest = _adamw(others, scale)
    step = 0
    for w, size in matrices:
        short = min(w.shape)
        copy = w.numel * BF16 if size != BF16 else 0
        step = max(step, w.numel * size + copy + BF16 * (2 * short * short + w.numel))
    return States(
        nbytes=_total(matrices, scale) + rest.nbytes,
        step=max(step, rest.step),
        formula="1 momentum for the blocks' matrices, 2 moments for everything else",
        step_formula="Newton-Schulz of the largest matrix, or AdamW's foreach temporaries",
        source="torch 2.13.0 torch/optim/_muon.py",
    )


def is_hidden(weight: Weight) -> bool:
    """A matrix of a block or of an adapter, no table of vectors."""
    table = weight.name.endswith(("embedding.weight", "relative_attention_bias.weight"))
    return (weight.layered or weight.added) and len(weight.shape) == 2 and not table


def _lion(groups: Groups, scale: float) -> States:
    return States(
        nbytes=_total([(w, FP32) for w, _ in groups], scale),
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
    "muon": _muon,
}
