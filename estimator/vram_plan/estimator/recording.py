"""The order in which one segment makes and drops its tensors, going forward and back.

The costs of a segment say how much is alive at its fullest moments; an allocator asks when each
storage comes and goes. A recording is that list, with the places where segments join: the tensor
that one hands to the next is one storage, and so is the gradient that comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from vram_plan.estimator.allocator import Change
from vram_plan.estimator.forward import Forward
from vram_plan.estimator.simulate import RECOMPUTED, Run, play
from vram_plan.estimator.tape import Node, Storage, Tensor

__all__ = ["Recording", "record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Changes of numbered storages.

    Attributes:
        forward: until the segment's output is handed on.
        backward: from the gradient of the output on; recomputation included.
        casts: storages that autocast's cache frees when the loss is there.
        gradients: gradients of weights, which stay.
        attached: storages that live until the whole backward pass is over.
        entered: the input, if it has a storage.
        left: the output.
        grad_left: the gradient of the output.
        grad_entered: the gradient of the input.
        offloaded: the input waits in host memory between the passes.
    """

    forward: tuple[Change, ...]
    backward: tuple[Change, ...]
    casts: frozenset[int]
    gradients: tuple[int, ...]
    attached: frozenset[int]
    entered: int | None
    left: int | None
    grad_left: int | None
    grad_entered: int | None
    offloaded: bool


@lru_cache(maxsize=512)
def record(run: Run) -> Recording:
    """Run one segment and write down what happens."""
    watcher = _Recorder()
    original = run.segment.run

    def watched(f: Forward, x: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
        out = original(f, x, shared)
        if watcher.left is None and out.storage is not None:
            watcher.left = watcher.numbers.get(id(out.storage))
        return out

    alone = replace(run, segment=replace(run.segment, run=watched), local=0)
    cost = play(alone, watcher)  # the model's local variables are the whole pass's
    watcher.leaf = None  # drops the gradient of the input
    at = watcher.places
    end = at["backward"]
    dropped_early = [n for n, delta in watcher.changes[at["casts"] : end] if delta < 0]
    backward = watcher.changes[end : at["gradients"]] + watcher.changes[at["end"] :]
    grads = [n for n, delta in watcher.changes[at["gradients"] : at["end"]] if delta < 0]
    entered = 0 if run.entered is not None and watcher.changes else None
    forgets = run.checkpoint in RECOMPUTED and not cost.saved
    forward = watcher.changes[: at["casts"]]
    if forgets and entered is not None:  # nothing goes back: the checkpoint is not kept either
        forward.append((entered, -watcher.sizes[entered]))
        backward = [(n, delta) for n, delta in backward if n != entered]
    return Recording(
        forward=tuple(forward),
        backward=tuple(backward),
        casts=frozenset(dropped_early),
        gradients=tuple(grads),
        attached=frozenset(watcher.attached),
        entered=entered,
        left=watcher.left,
        grad_left=_first_made(watcher.changes[end:], cost.left.nbytes) if cost.backward else None,
        grad_entered=watcher.grad_entered,
        offloaded=run.checkpoint == "offload" and entered is not None and not forgets,
    )


def _first_made(changes: list[Change], nbytes: int) -> int | None:
    for number, delta in changes:
        if 0 <= delta - nbytes < 512:
            return number
    return None


class _Recorder:
    """Numbers storages in the order in which they are made."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.numbers: dict[int, int] = {}
        self.sizes: list[int] = []
        self.places: dict[str, int] = {}
        self.left: int | None = None
        self.leaf: Node | None = None
        self.grad_entered: int | None = None
        self.attached: set[int] = set()

    def born(self, storage: Storage) -> None:
        """A storage is made."""
        if storage.nbytes:
            self.numbers[id(storage)] = len(self.sizes)
            self.changes.append((len(self.sizes), storage.nbytes))
            self.sizes.append(storage.nbytes)

    def died(self, storage: Storage) -> None:
        """Its last reference is gone."""
        if storage.nbytes:
            self.changes.append((self.numbers.pop(id(storage)), -storage.nbytes))

    def reach(self, place: str, leaf: Node | None, attached: list[Storage]) -> None:
        """A place in the run."""
        self.places[place] = len(self.changes)
        self.leaf = leaf
        if place == "end":
            self.attached = {self.numbers[id(storage)] for storage in attached}
            grad = leaf.grad if leaf is not None else None
            if grad is not None and grad.storage is not None:
                self.grad_entered = self.numbers.get(id(grad.storage))
