"""One segment on the tape: what it keeps, and its peaks going forward and back."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from vram_plan.estimator.carried import Borrowed, asked_for, waiting_gradient
from vram_plan.estimator.costs import BESIDE, Boundary, Bytes, Cost, Run
from vram_plan.estimator.early import await_early, early_gradients, held_with_loss
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.ops.cross_entropy import INDEX_BYTES
from vram_plan.estimator.ops.embedding import LeafVariable
from vram_plan.estimator.paging import send_to_host
from vram_plan.estimator.selected import Selected
from vram_plan.estimator.tape import Leaf, Node, Storage, Tensor
from vram_plan.estimator.tensors import Log

if TYPE_CHECKING:
    from vram_plan.estimator.speed.work import WorkLog

__all__ = ["RECOMPUTED", "Boundary", "Bytes", "Cost", "Run", "simulate"]

RECOMPUTED = frozenset({"full", "selective", "offload"})


@lru_cache(maxsize=4096)
def simulate(run: Run) -> Cost:
    """Run one segment forward and back on the tape."""
    return BESIDE[-1](run) if BESIDE else play(run)


class Watcher(Log, Protocol):
    """Is told, beside every storage, how far a segment's run has come."""

    def reach(self, place: str, leaf: Node | None, attached: list[Storage]) -> None:
        """A place in the run; the input's node; what lives until the loss goes."""


def play(run: Run, watcher: Watcher | None = None, work: WorkLog | None = None) -> Cost:
    """Run one segment forward and back, under a watcher's eyes where there is one.

    ``work`` notes what is computed; it is a watcher too.
    """
    f = _new_forward(run)
    watcher = watcher or work
    f.t.meter.log = watcher
    meter, recomputes = f.t.meter, run.checkpoint in RECOMPUTED
    f.frame.enter(f.t, run.local)
    borrowed = Borrowed(f.t, run.carried, f.frame)
    entered = [_entered(f, run)]
    held = weakref.ref(entered[0].storage) if entered[0].storage is not None else None
    if work is not None:
        f.t.work, work.tape = work, f.t
    leaf = entered[0].node  # the gradient of the input stays for the segment before
    with f.t.checkpointed(reentrant=run.how.reentrant) if recomputes else nullcontext():
        first = _forward(f, run, entered[0], borrowed)
    forward = dict(meter.fullest())
    if not recomputes:
        entered.clear()
    ended = borrowed.leave(checkpointed=recomputes, to_host=run.checkpoint == "offload")
    with_loss, returned = held_with_loss(f, run.segment.kind), f.returned.beside_saved(ended)
    _tell(watcher, "casts", f, leaf)
    cast, saved = _leave_autocast(f)
    keeps_input = held is not None and held() is not None
    _tell(watcher, "backward", f, leaf)
    kept = borrowed.kept() | first.kept()
    made = _go_back(f, run, first, entered, borrowed)
    if recomputes and first.node is None:
        saved, kept = {}, frozenset()
    if f.t.selected is not None and run.how.compiled and saved:
        saved["activations"] -= f.t.selected.unread
    host = f.t.paged_bytes
    if run.checkpoint == "offload" and run.entered is not None and saved:
        keeps_input = held is not None and held() is not None
        host = send_to_host(saved, run.entered, stays=keeps_input)
        host += sum(c.numel * c.itemsize for c in run.carried if c.read)
    backward = dict(meter.fullest()) if made.node is not None or run.late else {}
    later = dict(meter.peak_by_component) if meter.earlier is not None and backward else {}
    taken, left_late = f.late.taken, f.late.leave()
    _tell(watcher, "gradients", f, leaf)
    gradients = _take_gradients(f)
    _tell(watcher, "end", f, leaf)
    return Cost(
        params=tuple(f.params.values()),
        saved=saved,
        cast=cast,
        forward=forward,
        backward=backward,
        later=later,
        gradients=gradients,
        left=made.left,
        produced=tuple((name, boundary) for name, boundary, _ in made.extra),
        kept=kept,
        host=host,
        attached=sum(storage.nbytes for storage in set(f.t.attached)) + first.leaves,
        asked=first.leaves,
        taken=taken,
        left_late=left_late,
        early=early_gradients(f) if run.keeps_gradients else 0,
        with_loss=with_loss,
        returned=returned,
        waiting=0 if run.keeps_gradients else early_gradients(f),
        keeps_input=keeps_input,
        keeps_output=isinstance(first.node, LeafVariable) and first.node.storage is not None,
        passed=first.passed,
        outgoing=leaf.waits_with if leaf is not None else "",
    )


def _go_back(
    f: Forward, run: Run, first: _Made, entered: list[Tensor], borrowed: Borrowed
) -> _Made:
    """The backward pass, behind a second forward pass where the segment is recomputed.

    Returns:
        What the forward pass made whose gradients came back.
    """
    waiting = _await_gradients(run, first, borrowed)
    if first.node is None and not run.late:
        return first
    f.late.wait(f.t, run.late)
    if not run.keeps_gradients:
        await_early(f)
    if run.checkpoint not in RECOMPUTED:
        first.receive(waiting)
        if first.node is not None:
            f.t.backward(first.node, first.left.numel, first.left.itemsize, run.incoming)
        f.t.play()  # where only prefixes' gradients have come
        return first
    if run.how.reentrant:
        return _recompute_within(f, run, entered[0], borrowed, waiting)
    made = _recompute(f, run, entered[0], borrowed)
    if run.checkpoint == "offload":
        entered.clear()  # what came back from the host was the repeated function's argument alone
        borrowed.drop()
    made.receive(waiting)
    f.t.play()
    if f.t.selected is not None:
        f.t.selected.clear()
    return made


def _tell(watcher: Watcher | None, place: str, f: Forward, leaf: Node | None) -> None:
    if watcher is not None:
        watcher.reach(place, leaf, f.t.attached)


def _new_forward(run: Run) -> Forward:
    seq = run.source_seq if run.segment.stack == "encoder" else run.seq
    f = Forward(run.spec, run.how, batch=run.batch, seq=seq, layer=run.layer)
    f.source_seq = run.source_seq
    f.stack = run.segment.stack
    f.checkpointed = run.checkpoint in RECOMPUTED
    f.input_gradients = run.input_gradients and run.how.training
    selects = run.checkpoint == "selective"
    f.t.selected = Selected(alternates=run.how.alternates) if selects else None
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
    passed: str = ""
    leaves: int = 0

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


def _leave_autocast(f: Forward) -> tuple[Bytes, Bytes]:
    """Drop what is cached until the loss is there; bytes that frees, and what stays."""
    meter = f.t.meter
    before = dict(meter.by_component)
    f.cache.clear()
    meter.mark()
    after = dict(meter.by_component)
    return {name: size - after.get(name, 0) for name, size in before.items()}, after


def _recompute(f: Forward, run: Run, entered: Tensor, borrowed: Borrowed) -> _Made:
    """The second forward of a checkpointed segment.

    It starts when backward first asks for a saved tensor: the operators behind the last one that
    saves have gone back by then.
    """
    with f.t.rehearsal():
        made = _forward(f, run, entered, borrowed)
    f.cache.clear()
    assert made.node is not None
    made.node.grad = f.t.new(made.left.numel, made.left.itemsize, run.incoming)
    flying = f.t.play_tail()
    if run.checkpoint == "offload":
        borrowed.bring_back()
        if entered.storage in f.t.attached:  # a copy comes back beside what a context holds
            entered.storage = Storage(f.t.meter, entered.numel * entered.itemsize, "activations")
    with f.t.recompute():
        made = _forward(f, run, entered, borrowed)
    f.cache.clear()
    f.t.take_up(flying)
    return made


def _recompute_within(
    f: Forward, run: Run, entered: Tensor, borrowed: Borrowed, waiting: dict[str, Tensor]
) -> _Made:
    """A reentrant checkpoint: the whole block again, then back, within one backward function.

    Its output and the gradient that came in are arguments of the inner backward pass, so they live
    until it is through, and with the output the graph and its functions' contexts (torch 2.13.0
    ``torch/utils/checkpoint.py`` CheckpointFunction.backward).
    """
    outputs: list[Tensor] = []
    f.t.last_saved = -1  # nothing ends early
    with f.t.recompute() as contexts:
        made = _forward(f, run, entered, borrowed, outputs)
    f.cache.clear()
    made.receive(waiting)
    assert made.node is not None
    incoming = f.t.new(made.left.numel, made.left.itemsize, run.incoming)
    made.node.grad = incoming
    f.t.play()
    outputs.clear()
    contexts.clear()
    del incoming
    return made


def _take_gradients(f: Forward) -> int:
    """Bytes of the weight gradients, which the cost (remembered for long) does not hold."""
    nbytes = 0
    for param in f.params.values():
        if param.grad is not None and param.grad.storage is not None and not param.accumulates:
            nbytes += param.grad.storage.nbytes
        param.grad = param.waiting = None
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


def _forward(
    f: Forward,
    run: Run,
    entered: Tensor,
    borrowed: Borrowed,
    outputs: list[Tensor] | None = None,
) -> _Made:
    shared = {
        name: Tensor(s.numel, s.itemsize, None) for name, s in run.composition.shared(f).items()
    }
    run.how.method.begin(f, run.segment.kind)
    left = run.segment.run(f, entered, shared | borrowed.read())
    f.held = None
    if outputs is not None:
        outputs.append(Tensor(left.numel, left.itemsize, left.storage))
    if run.input_gradients and not run.input_stays and isinstance(left.node, LeafVariable):
        left.node.storage = None  # the first layer's checkpoint is the same tensor
    extra = tuple((name, Boundary.of(x), x.node) for name, x in f.produced.items())
    stored = tuple((name, weakref.ref(x.storage)) for name, x in f.produced.items() if x.storage)
    passed = next((name for name, x in f.produced.items() if x.storage is left.storage), "")
    f.produced.clear()
    return _Made(left.node, Boundary.of(left), extra, stored, passed, asked_for(f.t.nodes, extra))
