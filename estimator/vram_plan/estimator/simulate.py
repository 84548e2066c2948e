"""One segment on the tape: what it keeps, and its peaks going forward and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from vram_plan.estimator.forward import Forward, Treatment
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Leaf, Node, Param, Tensor
from vram_plan.profiles.model import ModelSpec

Bytes = dict[str, int]
"""Bytes by component."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """The tensor that passes from one segment to the next."""

    numel: int
    itemsize: int
    requires_grad: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one segment is run with; equal runs have equal costs.

    Attributes:
        batch: sequences in the micro-batch on this rank.
        seq: tokens of one of them on this rank.
        source_seq: tokens the encoder reads (0 without one).
        layer: index of the block.
        entered: the tensor it reads; None for token ids.
        checkpoint: ``none``, ``full``, ``selective`` or ``offload`` for this segment.
        keeps_gradients: weight gradients stay until the optimizer step; False where an engine
            moves them to a bucket at once or where they are added to those already there.
    """

    spec: ModelSpec
    how: Treatment
    segment: Segment
    composition: Composition
    batch: int
    seq: int
    source_seq: int = 0
    layer: int = -1
    entered: Boundary | None = None
    checkpoint: str = "none"
    keeps_gradients: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one segment costs, in bytes by component.

    Attributes:
        params: its weights (of the base model and of the method) on this rank.
        saved: alive after its forward pass, its input included, its output not.
        forward: the fullest moment of its forward pass.
        backward: the fullest moment of its backward pass, recomputation included.
        gradients: bytes of weight gradients it leaves behind.
        left: the tensor it hands on.
    """

    params: tuple[Param, ...]
    saved: Bytes
    forward: Bytes
    backward: Bytes
    gradients: int
    left: Boundary


@lru_cache(maxsize=4096)
def simulate(run: Run) -> Cost:
    """Run one segment forward and back on the tape."""
    f = Forward(run.spec, run.how, batch=run.batch, seq=run.seq, layer=run.layer)
    f.keeps_gradients = run.keeps_gradients
    meter = f.t.meter
    entered = [_entered(f, run)]
    if run.checkpoint == "none":
        node, left = _forward(f, run, entered[0])
        forward = dict(meter.peak_by_component)
        entered.clear()
        saved = dict(meter.by_component)
        meter.mark()
    else:
        with f.t.no_grad():
            _forward(f, run, entered[0])
        forward = dict(meter.peak_by_component)
        saved = dict(meter.by_component)
        meter.mark()
        node, left = _recompute(f, run, entered[0])
    if node is not None:
        f.t.backward(node, left.numel, left.itemsize)
    elif run.checkpoint != "none":
        saved = {}
    backward = dict(meter.peak_by_component) if node is not None else {}
    return _cost(f, left, saved=saved, forward=forward, backward=backward)


def _recompute(f: Forward, run: Run, entered: Tensor) -> tuple[Node | None, Boundary]:
    """The second forward of a checkpointed segment, while the gradient of its output waits."""
    grad = f.t.new(entered.numel, entered.itemsize, "temporaries")
    result = _forward(f, run, entered)
    del grad
    return result


def _cost(f: Forward, left: Boundary, *, saved: Bytes, forward: Bytes, backward: Bytes) -> Cost:
    params = tuple(f.params.values())
    kept = [p.grad.storage.nbytes for p in params if p.grad is not None and p.grad.storage]
    for param in params:
        param.grad = None
    return Cost(
        params=params,
        saved=saved,
        forward=forward,
        backward=backward,
        gradients=sum(kept),
        left=left,
    )


def _entered(f: Forward, run: Run) -> Tensor:
    """The segment's input; token ids are counted once for the whole step, not here."""
    if run.entered is None:
        return Tensor(f.tokens, INDEX_BYTES, None)
    x = f.t.new(run.entered.numel, run.entered.itemsize)
    if run.entered.requires_grad:
        x.node = Leaf()
    return x


def _forward(f: Forward, run: Run, entered: Tensor) -> tuple[Node | None, Boundary]:
    shared = {
        name: Tensor(s.numel, s.itemsize, None) for name, s in run.composition.shared(f).items()
    }
    left = run.segment.run(f, entered, shared)
    boundary = Boundary(
        numel=left.numel, itemsize=left.itemsize, requires_grad=left.node is not None
    )
    f.cache.clear()  # autocast drops its weight copies when it exits
    return left.node, boundary
