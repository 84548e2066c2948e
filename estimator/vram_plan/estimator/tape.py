"""A symbolic autograd tape: sizes without data, with the lifetimes of PyTorch's eager mode.

A composition (``blocks/``) is written like the library's ``forward``; running it on a tape
allocates symbolic storages instead of memory. Three facts make the result exact rather than a
rule of thumb:

* a storage lives as long as something refers to it, as in PyTorch: a Python variable of the
  composition, a node that saved it for the backward pass, or a gradient in flight. CPython's
  reference counts do the bookkeeping on both sides.
* every operator saves what ``derivatives.yaml`` (torch 2.13.0, ``tools/autograd``) says it saves,
  and only where an input that needs it requires a gradient.
* the backward pass runs nodes in reverse order of creation, frees what a node saved right after it
  ran, and adds gradients of one tensor in place where it holds the last reference
  (``torch/csrc/autograd/engine.cpp`` and ``input_buffer.cpp``, torch 2.13.0).

Sizes are rounded up to 512 bytes, as the CUDA caching allocator rounds a block
(``c10/cuda/CUDACachingAllocator.cpp``, ``kMinBlockSize``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vram_plan.estimator.paging import Saves, page_out
from vram_plan.estimator.selected import Selected
from vram_plan.estimator.tensors import (
    ROUNDING_BYTES,
    Backward,
    Leaf,
    Meter,
    Node,
    Param,
    Storage,
    Tensor,
    nothing,
    storages_in,
)

if TYPE_CHECKING:
    from vram_plan.estimator.speed.work import WorkLog

__all__ = [
    "ROUNDING_BYTES",
    "Backward",
    "Leaf",
    "Meter",
    "Node",
    "Param",
    "Storage",
    "Tape",
    "Tensor",
]


class Tape:
    """Runs a composition: allocates, records nodes while gradients are on, and plays them back."""

    __slots__ = (
        "attached",
        "component",
        "contexts",
        "forgets",
        "grad_enabled",
        "last_saved",
        "made",
        "meter",
        "nodes",
        "paged_bytes",
        "pages_out",
        "recomputed",
        "rehearses",
        "selected",
        "stop",
        "tail",
        "training",
        "unpacked",
        "work",
    )

    def __init__(self, meter: Meter | None = None, *, training: bool = True) -> None:
        self.meter = meter or Meter()
        self.nodes: list[Node] = []
        self.grad_enabled = training
        self.training = training
        self.component = "activations"
        self.forgets = False
        self.made = 0
        self.last_saved = 0
        self.stop = -1
        self.recomputed = False
        self.rehearses = False
        self.tail = 0
        self.selected: Selected | None = None
        self.pages_out = False
        self.paged_bytes = 0
        self.unpacked: list[Tensor] = []
        self.attached: list[Storage] = []
        self.contexts: list[Storage] | None = self.attached
        self.work: WorkLog | None = None

    def compute(self, numel: int, itemsize: int) -> Tensor:
        """Allocate an output of a matrix product or an attention kernel: `Selected` keeps it."""
        if self.selected is not None and self.kept_already():
            self.made += 1
            if self.work is not None:
                self.work.replay()
            return Tensor(numel, itemsize, self.selected.again())
        out = self.new(numel, itemsize)
        if self.forgets and self.selected is not None:
            self.selected.keep(out.storage)
        return out

    def inside(self, numel: int, itemsize: int) -> Tensor:
        """Allocate what lives inside the operator that makes the next `compute`."""
        if self.kept_already():
            self.made += 1
            return Tensor(numel, itemsize, None)
        return self.new(numel, itemsize, "temporaries")

    def kept_already(self) -> bool:
        """Whether the next `compute` hands out what was kept instead of making it."""
        ends = self.made >= self.stop >= 0
        return self.selected is not None and self.selected.replays and not ends

    def new(self, numel: int, itemsize: int, component: str | None = None) -> Tensor:
        """Allocate a tensor that no gradient flows through."""
        self.made += 1
        nbytes = 0 if self.made > self.stop >= 0 else numel * itemsize
        return Tensor(numel, itemsize, Storage(self.meter, nbytes, component or self.component))

    def record(
        self,
        out: Tensor,
        edges: tuple[Node | Param | None, ...],
        fn: Backward,
        *,
        packs: bool = False,
        saves: Saves = None,
    ) -> Tensor:
        """Attach a backward function to ``out`` if any edge leads somewhere.

        ``packs`` says that a number or a weight is saved: no memory of the tape's, but a saved
        tensor where recomputation stops. ``saves`` names what is saved where that is not the
        storages ``fn`` holds, each whole: views, weights.
        """
        if self.work is not None:
            self.work.forward_done(out, edges)
        if self.grad_enabled:
            for edge in edges:
                if edge is not None:
                    if self.forgets:
                        out.node = Node(nothing, (), self.component)
                        break
                    node = Node(fn, edges, self.component)
                    if self.pages_out:
                        page_out(self, node, out, saves)
                    self.nodes.append(node)
                    out.node = node
                    if self.rehearses:
                        self._note_saved(out, fn, packs=packs)
                    break
        return out

    def _note_saved(self, out: Tensor, fn: Backward, *, packs: bool) -> None:
        """Remember how many tensors were made, and nodes, when a saved one was last packed.

        Inputs are packed before the operator runs, so ``out`` counts only if it is saved itself.
        """
        saved = list(storages_in(cell.cell_contents for cell in fn.__closure__ or ()))
        if saved or packs:
            self.last_saved = self.made - (out.storage not in saved)
            self.tail = len(self.nodes)

    def attach(self, storage: Storage | None) -> None:
        """Keep what a Python function's context has as an attribute: no node frees it."""
        if storage is not None and self.contexts is not None:
            self.contexts.append(storage)

    def needs(self, *edges: Node | Param | None) -> bool:
        """Whether an operator with these edges will be recorded."""
        return self.grad_enabled and any(edge is not None for edge in edges)

    def leaf(self, tensor: Tensor) -> Leaf:
        """Make ``tensor`` a leaf that requires a gradient and return where that gradient lands."""
        leaf = Leaf()
        tensor.node = leaf
        return leaf

    def backward(self, out: Node, numel: int, itemsize: int, of: str = "temporaries") -> None:
        """Play back from node ``out``, whose gradient has ``numel`` elements ``of`` a component."""
        out.grad = self.new(numel, itemsize, of)
        self.play()

    def play(self, down_to: int = 0) -> None:
        """Run the nodes that have a gradient, the last one first, while more than some are left."""
        nodes, outer = self.nodes, self.component
        while len(nodes) > down_to:
            node = nodes.pop()
            if node.grad is not None and node.fn is not None:
                # What a backward function makes is in flight, except logits, kept by their name.
                self.component = "logits" if node.component == "logits" else "temporaries"
                self._run(node)
            node.fn, node.edges = None, ()
        self.component = outer

    def _run(self, node: Node) -> None:
        grad, node.grad = node.grad, None
        assert grad is not None
        assert node.fn is not None
        self.unpacked = [self.new(nbytes, 1, component) for nbytes, component in node.paged]
        grads = list(node.fn(grad) if self.work is None else self.work.going_back(node, grad))
        del grad
        self.unpacked = []
        node.fn = None  # releases what was saved before the gradients travel on
        grads.reverse()
        for edge in node.edges:
            result = grads.pop()
            if edge is not None and result is not None:
                edge.accumulate(result)
            del result

    @contextmanager
    def checkpointed(self, *, reentrant: bool = False) -> Iterator[None]:
        """The first forward of a checkpoint keeps nothing; a reentrant one makes no contexts."""
        self.forgets, self.contexts = True, None if reentrant else self.attached
        try:
            yield
        finally:
            self.nodes.clear()
            self.forgets, self.contexts = False, self.attached

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Run without bytes, to learn which operators come after the last one that saves."""
        self.rehearses, self.contexts = True, None
        self.made = self.stop = self.last_saved = self.tail = 0
        try:
            yield
        finally:
            self.rehearses, self.stop, self.contexts = False, -1, self.attached

    def play_tail(self) -> list[tuple[int, Tensor]]:
        """Go back until a saved tensor is asked for: recomputation starts there.

        Returns:
            The gradients in flight, each with the number of the node that waits for it.
        """
        self.play(self.tail)
        flying = [(i, node.grad) for i, node in enumerate(self.nodes) if node.grad is not None]
        for node in self.nodes:
            node.grad = None
        self.nodes.clear()
        return flying

    def take_up(self, flying: list[tuple[int, Tensor]]) -> None:
        """Hand the gradients in flight to the recomputed nodes."""
        del self.nodes[self.tail :]
        while flying:
            i, grad = flying.pop()
            self.nodes[i].grad = grad

    @contextmanager
    def recompute(self) -> Iterator[list[Storage]]:
        """Run again until the last saved tensor is there; what comes later is not made.

        torch 2.13.0 ``torch/utils/checkpoint.py``: non-reentrant checkpoints stop early. Contexts
        end with the list handed out.
        """
        self.made, self.stop = 0, self.last_saved
        self.recomputed = True
        self.contexts = []
        if self.selected is not None:
            self.selected.replays = True
        try:
            yield self.contexts
        finally:
            self.stop, self.contexts = -1, self.attached
            if self.selected is not None:
                self.selected.replays = False

    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """Run without recording, as the first forward of a checkpointed segment does."""
        before, self.grad_enabled = self.grad_enabled, False
        try:
            yield
        finally:
            self.grad_enabled = before

    @contextmanager
    def scope(self, component: str) -> Iterator[None]:
        """Count what is made inside under ``component``."""
        before, self.component = self.component, component
        try:
            yield
        finally:
            self.component = before
