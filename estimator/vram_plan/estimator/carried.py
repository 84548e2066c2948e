"""Tensors that travel past segments: an encoder's output, T5's position bias.

One segment makes such a tensor (``Forward.produce``), later ones read it or merely keep it alive.
Its bytes are counted once, in the first segment that saves it for the backward pass; before that,
and where nobody saves it, it lives as long as the variable of the library's code that names it.
Its gradient is made by the last reader and waits, growing in place, until the maker's turn comes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vram_plan.estimator.frames import Frame
from vram_plan.estimator.ops.embedding import LeafVariable
from vram_plan.estimator.tape import ROUNDING_BYTES, Leaf, Node, Storage, Tape, Tensor

if TYPE_CHECKING:
    from vram_plan.estimator.segment import Segment
    from vram_plan.estimator.simulate import Boundary, Cost


PROMPTED = ("prompts", "inputs_embeds", "encoder.words")
"""What variables of ``PeftModel…forward`` hold until the loss is there (virtual tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """One such tensor as a segment meets it.

    Attributes:
        name: under which it was made.
        numel: elements.
        itemsize: bytes per element.
        requires_grad: a gradient flows back to its maker.
        read: the segment reads it.
        framed: the model's forward holds it until it returns, in the midst of the segment.
        counted: an earlier segment keeps its bytes already.
        waiting: a later reader has gone back before, so a gradient is there already.
    """

    name: str
    numel: int
    itemsize: int
    requires_grad: bool
    read: bool
    counted: bool
    waiting: bool
    framed: bool = False


class Journeys:
    """What travels through a chain, followed while its segments are simulated in order."""

    def __init__(self, segments: tuple[Segment, ...], *, prompted: bool = False) -> None:
        self.segments = segments
        self.passed = ""
        self.made: dict[str, Boundary] = {}
        self.counted: set[str] = set()
        self.last_read: dict[str, int] = {}
        self.last_alive: dict[str, int] = {}
        for i, segment in enumerate(segments):
            self.last_read.update(dict.fromkeys(segment.reads, i))
            alive = (*segment.reads, *segment.holds, *segment.framed)
            self.last_alive.update(dict.fromkeys(alive, i))
        if prompted:
            self.last_alive.update(dict.fromkeys(PROMPTED, len(segments) - 1))

    def carried(self, i: int, *, last_piece: bool) -> tuple[Carried, ...]:
        """What segment ``i`` meets; ``last_piece`` is the last of its ``count`` pieces."""
        result = []
        for name, made in self.made.items():
            entered = name == self.passed and self.segments[i].kind != "embedding"
            if i > self.last_alive.get(name, -1) or entered:
                continue
            final = self.last_read.get(name, -1)
            later = i < final or (i == final and not last_piece)
            result.append(
                Carried(
                    name=name,
                    numel=made.numel,
                    itemsize=made.itemsize,
                    requires_grad=made.requires_grad,
                    read=name in self.segments[i].reads,
                    counted=name in self.counted,
                    waiting=later and made.requires_grad,
                    framed=name in self.segments[i].framed,
                )
            )
        return tuple(result)

    def awaited(self, i: int) -> frozenset[str]:
        """Names that segments after ``i`` read."""
        return frozenset(name for name, last in self.last_read.items() if last > i)

    def note(self, cost: Cost) -> None:
        """Take up what a segment made and what it keeps."""
        if self.passed and cost.keeps_input:
            self.counted.add(self.passed)
        self.passed = cost.passed
        self.made.update(cost.produced)
        self.counted |= cost.kept


class Borrowed:
    """The carried tensors inside the simulation of one segment."""

    def __init__(self, tape: Tape, carried: tuple[Carried, ...], frame: Frame) -> None:
        self.tape = tape
        self.carried = carried
        self.frame = frame
        self.leaves = {c.name: Leaf() for c in carried if c.read and c.requires_grad}
        self.variables: dict[str, Tensor] = {}
        self.stored: dict[str, weakref.ref[Storage]] = {}
        self.waiting: list[Tensor] = []
        for c in carried:
            self._lend(c)

    def _lend(self, c: Carried) -> None:
        storage = None
        if not c.counted:
            storage = Storage(self.tape.meter, c.numel * c.itemsize, "activations")
            self.stored[c.name] = weakref.ref(storage)
        if c.framed:
            self.frame.hold(storage)
            storage = None
        self.variables[c.name] = Tensor(c.numel, c.itemsize, storage, self.leaves.get(c.name))

    def read(self) -> dict[str, Tensor]:
        """What the composition finds among its shared tensors."""
        return {c.name: self.variables[c.name] for c in self.carried if c.read}

    def leave(self, *, checkpointed: bool, to_host: bool = False) -> int:
        """Drop the variables at the end of the forward pass; a checkpoint holds its arguments.

        ``to_host``: on the host, every checkpoint its own copies (transformers 5.23.0
        ``modeling_utils.py``, ``_activation_checkpointing_enable``: ``save_on_cpu`` around
        ``checkpoint``, which saves all tensors that it is given).

        Returns:
            Bytes that are gone now.
        """
        self.frame.leave()
        stored = [v.storage for v in self.variables.values() if v.storage is not None]
        held = [(weakref.ref(storage), storage.nbytes) for storage in stored]
        stored.clear()
        for c in self.carried:
            if not (checkpointed and c.read):
                del self.variables[c.name]
            elif to_host:
                self.variables[c.name].storage = None
        return sum(nbytes for storage, nbytes in held if storage() is None)

    def bring_back(self) -> None:
        """Copy a checkpoint's arguments back from the host."""
        for c in self.carried:
            if c.read:
                storage = Storage(self.tape.meter, c.numel * c.itemsize, "activations")
                self.variables[c.name].storage = storage

    def drop(self) -> None:
        """Let go of what came back: the repeated function alone held it."""
        for variable in self.variables.values():
            variable.storage = None

    def kept(self) -> frozenset[str]:
        """Names whose bytes this segment keeps."""
        return frozenset(name for name, stored in self.stored.items() if stored() is not None)

    def await_gradients(self) -> None:
        """Make the gradients that later readers have left: the segment's own are added to them."""
        for c in self.carried:
            if c.waiting:
                grad = waiting_gradient(self.tape, c.numel, c.itemsize)
                if c.read:
                    self.leaves[c.name].grad = grad
                else:
                    self.waiting.append(grad)
                del grad


def waiting_gradient(tape: Tape, numel: int, itemsize: int) -> Tensor:
    """A gradient that is there before the segment goes back."""
    return Tensor(numel, itemsize, Storage(tape.meter, numel * itemsize, "temporaries"))


def asked_for(nodes: Iterable[Node], made: Iterable[tuple[str, Boundary, Node | None]]) -> int:
    """Bytes of tensors that were asked for their gradient; it takes as many.

    A leaf's ``AccumulateGrad`` names it, and the graph lives as long as the loss does.
    """
    edges = (edge for node in nodes for edge in node.edges if isinstance(edge, LeafVariable))
    sizes = {id(edge): edge.storage.nbytes for edge in edges if edge.storage is not None}
    for _, boundary, node in made:
        if isinstance(node, LeafVariable):
            sizes[id(node)] = -(-boundary.nbytes // ROUNDING_BYTES) * ROUNDING_BYTES
    return sum(sizes.values())
