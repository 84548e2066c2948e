"""A part of the loss that is made of weights: what it holds, and the gradients it makes early.

A method that adds a part to the loss (AdaLoRA) makes them last and so has them first. The engine
holds such a part until the weight's own gradient comes, adds the two in place and hands the sum on
(torch 2.13.0 ``torch/csrc/autograd/input_buffer.cpp``).

Until then the part's own tape lives beside those of the segments, and so do the logits that the
model has returned: PEFT 0.21.2 ``tuners/adalora/model.py`` ``AdaLoraModel.forward`` adds the part
to ``outputs.loss``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

from vram_plan.estimator.tape import ROUNDING_BYTES, Param, Storage, Tensor
from vram_plan.estimator.tensors import rounded

if TYPE_CHECKING:
    from vram_plan.estimator.costs import Bytes
    from vram_plan.estimator.forward import Forward

LOW_BYTES = 2


class Returned:
    """The logits that a model returns: its caller holds them until it has the loss."""

    __slots__ = ("_nbytes", "_storage")

    def __init__(self) -> None:
        self._storage: ReferenceType[Storage] | None = None
        self._nbytes = 0

    def hold(self, logits: Tensor) -> None:
        """Note the logits."""
        assert logits.storage is not None
        self._storage, self._nbytes = ref(logits.storage), logits.storage.nbytes

    def beside_saved(self, others: int) -> Bytes:
        """Their bytes where no backward function keeps them: asked when the model is through.

        ``others``: of an encoder's output, which is returned too.
        """
        kept = self._storage is None or self._storage() is not None
        return {"logits": 0 if kept else self._nbytes, "activations": others}


def early_gradients(f: Forward) -> int:
    """Their bytes in one segment."""
    return sum(rounded(p.numel * p.itemsize) for p in _regularized(f))


def await_early(f: Forward) -> None:
    """Make them where a gradient is there already: each goes when its weight's own has come."""
    for p in _regularized(f):
        p.grad = Tensor(p.numel, p.itemsize, Storage(f.t.meter, p.numel * p.itemsize, "gradients"))


def held_with_loss(f: Forward, kind: str) -> Bytes:
    """Bytes of one segment that are alive when the part has been made, besides what is kept.

    Of every such weight W of rank r: ``W @ W.T`` keeps both factors, which are copies under
    autocast alone, and the norm its argument (r × r) and its result. The head stands for what is
    there once: the last product and the identity matrix, later two steps of the norm's derivative,
    and three scalars.
    """
    rank = getattr(f.how.method, "rank", 0)
    itemsize = LOW_BYTES if f.how.autocast else f.how.adapter_bytes
    square, found = rounded(rank * rank * itemsize), {"temporaries": 0, "logits": 0}
    for p in _regularized(f):
        found["temporaries"] += 2 * rounded(p.numel * LOW_BYTES) if f.how.autocast else 0
        found["logits"] += square + ROUNDING_BYTES
    if kind == "head":
        found["logits"] += 2 * square + 3 * ROUNDING_BYTES
    return found


def _regularized(f: Forward) -> list[Param]:
    method = f.how.method
    return [p for p in f.params.values() if p.trainable and method.regularizes(f, p.name)]
