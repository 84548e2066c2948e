"""One segment on the tape: what it keeps, and its peaks going forward and back."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

from vram_plan.estimator.carried import Borrowed, Carried, waiting_gradient
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.embedding import LeafVariable
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import ROUNDING_BYTES, Leaf, Node, Param, Storage, Tensor
from vram_plan.estimator.treatment import Treatment
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
        checkpoint: ``none``, ``full``, ``selective`` or ``offload`` for this segment, or
            ``page-out``: nothing is recomputed, what is saved goes to the host.
        keeps_gradients: weight gradients stay until the optimizer step; False where an engine
            moves them to a bucket at once or where they are added to those already there.
        carried: tensors of earlier segments that live while this one runs.
        awaited: names that later segments read.
        input_gradients: the looked-up tokens are made to require a gradient although their table
            does not learn, as libraries do for checkpointed models
            (``enable_input_require_grads``, transformers 5.23.0 ``modeling_utils.py``).
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
    carried: tuple[Carried, ...] = ()
    awaited: frozenset[str] = frozenset()
    input_gradients: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one segment costs, in bytes by component.

    Attributes:
        params: its weights (of the base model and of the method) on this rank.
        saved: alive after its forward pass, its input included, its output not.
        cast: low-precision copies of weights that autocast keeps until the loss is there, beyond
            what is in ``saved``.
        forward: the fullest moment of its forward pass.
        backward: the fullest moment of its backward pass, recomputation included.
        gradients: bytes of weight gradients it leaves behind.
        left: the tensor it hands on.
        produced: what it made for later segments, by name.
        kept: names of carried tensors whose bytes are in ``saved``.
        host: bytes it sends to host memory until its backward pass.
    """

    params: tuple[Param, ...]
    saved: Bytes
    cast: int
    forward: Bytes
    backward: Bytes
    gradients: int
    left: Boundary
    produced: tuple[tuple[str, Boundary], ...] = ()
    kept: frozenset[str] = frozenset()
    host: int = 0


RECOMPUTED = frozenset({"full", "selective", "offload"})


@lru_cache(maxsize=4096)
def simulate(run: Run) -> Cost:
    """Run one segment forward and back on the tape."""
    f = _new_forward(run)
    meter, recomputes = f.t.meter, run.checkpoint in RECOMPUTED
    borrowed = Borrowed(f.t, run.carried)
    entered = [_entered(f, run)]
    with f.t.checkpointed() if recomputes else nullcontext():
        first = _forward(f, run, entered[0], borrowed)
    forward = dict(meter.peak_by_component)
    if not recomputes:
        entered.clear()
    borrowed.leave(checkpointed=recomputes)
    cast, saved = _leave_autocast(f)
    kept = borrowed.kept() | first.kept()
    waiting = _await_gradients(run, first, borrowed)
    made = first
    if recomputes and first.node is not None:
        made = _recompute(f, run, entered[0], borrowed)
        made.receive(waiting)
        f.t.play()
    elif first.node is not None:
        made.receive(waiting)
        f.t.backward(first.node, first.left.numel, first.left.itemsize)
    elif recomputes:
        saved, kept = {}, frozenset()
    host = f.t.paged_bytes
    if run.checkpoint == "offload" and run.entered is not None and saved:
        host = _send_to_host(saved, run.entered)
    backward = dict(meter.peak_by_component) if made.node is not None else {}
    return Cost(
        params=tuple(f.params.values()),
        saved=saved,
        cast=cast,
        forward=forward,
        backward=backward,
        gradients=_take_gradients(f),
        left=made.left,
        produced=tuple((name, boundary) for name, boundary, _ in made.extra),
        kept=kept,
        host=host,
    )


def _send_to_host(saved: Bytes, entered: Boundary) -> int:
    """Take a checkpoint off the device; it comes back for the recomputation."""
    nbytes = -(-entered.nbytes // ROUNDING_BYTES) * ROUNDING_BYTES
    saved["activations"] -= nbytes
    return nbytes


def _new_forward(run: Run) -> Forward:
    seq = run.source_seq if run.segment.stack == "encoder" else run.seq
    f = Forward(run.spec, run.how, batch=run.batch, seq=seq, layer=run.layer)
    f.source_seq = run.source_seq
    f.stack = run.segment.stack
    f.checkpointed = run.checkpoint in RECOMPUTED
    f.input_gradients = run.input_gradients and run.how.training
    f.t.selective = run.checkpoint == "selective"
    f.t.pages_out = run.checkpoint == "page-out"
    f.repeats = run.segment.repeats
    f.keeps_gradients = run.keeps_gradients and not run.segment.repeats
    return f


@dataclass(frozen=True, slots=True)
class _Made:
    """What a forward pass leaves: its output and what it made for later segments."""

    node: Node | None
    left: Boundary
    extra: tuple[tuple[str, Boundary, Node | None], ...]
    stored: tuple[tuple[str, weakref.ref[Storage]], ...]

    def kept(self) -> frozenset[str]:
        """Names of what it made whose bytes its own backward functions keep."""
        return frozenset(name for name, stored in self.stored if stored() is not None)

    def receive(self, waiting: dict[str, Tensor]) -> None:
        """Hand the gradients that later readers left to the tensors they belong to."""
        for name, _, node in self.extra:
            if node is not None and name in waiting:
                node.grad = waiting.pop(name)


def _await_gradients(run: Run, made: _Made, borrowed: Borrowed) -> dict[str, Tensor]:
    """The gradients that exist before this segment goes back, besides that of its output."""
    borrowed.await_gradients()
    waiting = {}
    for name, boundary, node in made.extra:
        if name in run.awaited and node is not None and node is not made.node:
            waiting[name] = waiting_gradient(borrowed.tape, boundary.numel, boundary.itemsize)
    return waiting


def _leave_autocast(f: Forward) -> tuple[int, Bytes]:
    """Drop the weight copies that autocast cached; bytes that frees, and what stays."""
    meter = f.t.meter
    before = meter.live
    f.cache.clear()
    meter.mark()
    return before - meter.live, dict(meter.by_component)


def _recompute(f: Forward, run: Run, entered: Tensor, borrowed: Borrowed) -> _Made:
    """The second forward of a checkpointed segment.

    It starts when backward first asks for a saved tensor: the operators behind the last one that
    saves have gone back by then.
    """
    with f.t.rehearsal():
        made = _forward(f, run, entered, borrowed)
    f.cache.clear()
    assert made.node is not None
    flying = f.t.play_tail(made.node, made.left.numel, made.left.itemsize)
    with f.t.recompute():
        made = _forward(f, run, entered, borrowed)
    f.cache.clear()
    f.t.take_up(flying)
    return made


def _take_gradients(f: Forward) -> int:
    """Bytes of the weight gradients, which the cost (remembered for long) does not hold."""
    nbytes = 0
    for param in f.params.values():
        if param.grad is not None and param.grad.storage is not None:
            nbytes += param.grad.storage.nbytes
        param.grad = None
    return nbytes


def _entered(f: Forward, run: Run) -> Tensor:
    """The segment's input; token ids are counted once for the whole step, not here."""
    if run.entered is None:
        prompted = run.segment.stack == "encoder" or not run.source_seq
        prompts = f.batch * run.how.method.virtual_tokens if prompted else 0
        return Tensor(f.tokens - prompts, INDEX_BYTES, None)
    x = f.t.new(run.entered.numel, run.entered.itemsize)
    if run.entered.requires_grad:
        x.node = Leaf()
    return x


def _forward(f: Forward, run: Run, entered: Tensor, borrowed: Borrowed) -> _Made:
    shared = {
        name: Tensor(s.numel, s.itemsize, None) for name, s in run.composition.shared(f).items()
    }
    left = run.segment.run(f, entered, shared | borrowed.read())
    if run.input_gradients and isinstance(left.node, LeafVariable):
        left.node.storage = None  # the first layer's checkpoint is the same tensor
    extra = tuple((name, _boundary(x), x.node) for name, x in f.produced.items())
    stored = tuple((name, weakref.ref(x.storage)) for name, x in f.produced.items() if x.storage)
    f.produced.clear()
    return _Made(left.node, _boundary(left), extra, stored)


def _boundary(x: Tensor) -> Boundary:
    return Boundary(numel=x.numel, itemsize=x.itemsize, requires_grad=x.node is not None)
