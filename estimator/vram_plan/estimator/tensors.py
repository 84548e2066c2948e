"""What a tape counts: storages with their bytes, symbolic tensors, weights, backward functions.

Reference counts decide how long a storage lives, as in PyTorch; see ``tape.py``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from sys import getrefcount
from typing import ClassVar, Protocol

ROUNDING_BYTES = 512

Backward = Callable[["Tensor"], "tuple[Tensor | None, ...]"]


class Log(Protocol):
    """Is told of every storage, where somebody asks for the order of things."""

    def born(self, storage: "Storage") -> None:
        """A storage is made."""

    def died(self, storage: "Storage") -> None:
        """Its last reference is gone."""


class Meter:
    """Counts live bytes by component and remembers the moment of the peak."""

    __slots__ = ("by_component", "earlier", "live", "log", "peak", "peak_by_component")

    def __init__(self) -> None:
        self.log: Log | None = None
        self.live = 0
        self.peak = 0
        self.by_component: dict[str, int] = {}
        self.earlier: tuple[int, dict[str, int]] | None = None
        self.peak_by_component: dict[str, int] = {}

    def take(self, nbytes: int, component: str) -> None:
        """Add ``nbytes`` of ``component``."""
        live = self.live = self.live + nbytes
        by = self.by_component
        by[component] = by.get(component, 0) + nbytes
        if live > self.peak:
            self.peak = live
            self.peak_by_component = by.copy()

    def give(self, nbytes: int, component: str) -> None:
        """Remove ``nbytes`` of ``component``."""
        self.live -= nbytes
        self.by_component[component] -= nbytes

    def mark(self) -> None:
        """Start a new measurement: the peak is what lives now."""
        self.earlier = None
        self.peak = self.live
        self.peak_by_component = self.by_component.copy()

    def arrive(self) -> None:
        """A weight's gradient is there: from the first one on the peak is measured apart."""
        if self.earlier is None:
            peak, by_component = self.peak, self.peak_by_component
            self.mark()
            self.earlier = peak, by_component

    def fullest(self) -> dict[str, int]:
        """Bytes by component at the peak of the whole measurement."""
        if self.earlier is not None and self.earlier[0] >= self.peak:
            return self.earlier[1]
        return self.peak_by_component


class Storage:
    """Bytes that live until the last reference to this object goes."""

    __slots__ = ("__weakref__", "component", "meter", "nbytes")

    def __init__(self, meter: Meter, nbytes: int, component: str) -> None:
        self.nbytes = (nbytes + ROUNDING_BYTES - 1) // ROUNDING_BYTES * ROUNDING_BYTES
        self.component = component
        self.meter = meter
        meter.take(self.nbytes, component)
        if meter.log is not None:
            meter.log.born(self)

    def __del__(self) -> None:
        meter = self.meter
        meter.give(self.nbytes, self.component)
        if meter.log is not None:
            meter.log.died(self)


class Tensor:
    """A symbolic tensor: a number of elements, their size, a storage and the node that made it.

    Three flags matter for gradients alone. ``is_view``: a view keeps its base alive, so the engine
    never adds to it in place. ``by_token``: heads lie behind one another for each token, as a
    projection makes them, so that undoing a transposition needs no copy. ``flat``: a matrix of all
    tokens, so that a linear layer hands back its gradient itself and no view.
    """

    __slots__ = ("by_token", "flat", "is_view", "itemsize", "node", "numel", "storage")

    def __init__(
        self, numel: int, itemsize: int, storage: Storage | None, node: "Node | None" = None
    ) -> None:
        self.numel = numel
        self.itemsize = itemsize
        self.storage = storage
        self.node = node
        self.is_view = False
        self.by_token = False
        self.flat = False

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows back through this tensor."""
        return self.node is not None

    def view(self, numel: int | None = None) -> "Tensor":
        """The same storage under another shape (``numel`` differs for slices and expansions)."""
        seen = Tensor(
            self.numel if numel is None else numel, self.itemsize, self.storage, self.node
        )
        seen.is_view = True
        return seen

    def moved(self) -> "Tensor":
        """This tensor for a new owner alone: whoever else holds it holds an empty shell."""
        out = Tensor(self.numel, self.itemsize, self.storage, self.node)
        out.by_token = self.by_token
        self.storage = None
        return out


@dataclass(eq=False, slots=True)
class Param:
    """A weight. Its bytes are an entry of the ledger, not of the tape; its gradient is the tape's.

    Attributes:
        name: module path inside its segment, such as ``self_attn.q_proj.weight``.
        numel: elements on this rank.
        itemsize: bytes per element as held (0.5 for 4-bit codes never reaches the tape: a
            quantized weight is a frozen one).
        trainable: whether a gradient is made for it.
        accumulates: a gradient is already there (second micro-batch, or a tied weight).
        packed: held quantized; its bytes are an entry of the quantization.
        added: belongs to the training method, not to the base model.
        turned: its module multiplies by ``weight.T``, a view, which autocast casts at every use.
        shape: its dimensions on this rank.
        shares: gradients that are added up before the sum is added to one that is there already.
        factors: what it was computed from, where a variable holds that.
        grad: the gradient, once made; where it accumulates, the part that waits for the rest.
        alive: bytes by component at the moment its gradient arrives.
        waiting: where its gradient is kept until all of its module's have come (``leaf.py``).
        gradient: the component of its gradient.
    """

    name: str
    numel: int
    itemsize: int
    trainable: bool
    accumulates: bool = False
    packed: bool = False
    added: bool = False
    turned: bool = False
    shape: tuple[int, ...] = ()
    shares: int = 1
    factors: "tuple[Tensor, ...]" = ()
    grad: "Tensor | None" = None
    alive: "dict[str, int] | None" = None
    waiting: "list[Tensor] | None" = None
    gradient: ClassVar[str] = "gradients"

    def accumulate(self, grad: Tensor) -> None:
        """Keep the gradient, or add it to the one that is there.

        In place, unless what is there is a view (``can_accumulate_inplace``).
        """
        self.shares -= 1
        if self.grad is None:
            self.grad = grad
        elif self.grad.is_view and grad.storage is not None:
            made = Storage(grad.storage.meter, grad.numel * grad.itemsize, self.gradient)
            self.grad = Tensor(grad.numel, grad.itemsize, made)
        if grad.storage is not None and self.shares < 1:
            self.alive = grad.storage.meter.by_component.copy()
            grad.storage.meter.arrive()
        if self.accumulates and self.shares < 1:
            if self.waiting is not None and self.grad is not None:
                self.waiting.append(self.grad)
            self.grad = None  # all that came is added to an earlier micro-batch's


class Node:
    """One backward function with what it saved (held by the closure) and where gradients go."""

    __slots__ = ("component", "edges", "fn", "grad", "paged")

    def __init__(
        self, fn: Backward, edges: "tuple[Node | Param | None, ...]", component: str
    ) -> None:
        self.fn: Backward | None = fn
        self.edges = edges
        self.component = component
        self.grad: Tensor | None = None
        self.paged: tuple[tuple[int, str], ...] = ()

    @property
    def waits_with(self) -> str:
        """The component of the gradient that has come."""
        return self.grad.storage.component if self.grad and self.grad.storage else ""

    def accumulate(self, grad: Tensor) -> None:
        """Add an incoming gradient as ``InputBuffer::add`` does.

        In place where the stored one is no view and nobody else refers to it, else into a new
        tensor (``can_accumulate_inplace``).
        """
        held = self.grad
        if held is None:
            self.grad = grad
            return
        storage = held.storage
        # Two references: the tensor's attribute and the local name; getrefcount's argument is
        # the third. The tensor itself is held by self.grad, by the local name and the argument.
        alone = storage is not None and getrefcount(storage) <= 3 and getrefcount(held) <= 3
        if alone and not held.is_view:
            return
        meter_of = grad.storage or storage
        if meter_of is not None:
            nbytes = grad.numel * grad.itemsize
            self.grad = Tensor(
                grad.numel, grad.itemsize, Storage(meter_of.meter, nbytes, meter_of.component)
            )


class Leaf(Node):
    """The end of a gradient's way: an input of a segment that requires one."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(lambda grad: (), (), "temporaries")


def nothing(grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward function of a node that is never played."""
    return ()


def rounded(nbytes: int) -> int:
    """Bytes the allocator takes for a tensor of ``nbytes``."""
    return -(-nbytes // ROUNDING_BYTES) * ROUNDING_BYTES


def storages_in(values: Iterable[object]) -> Iterator[Storage]:
    """The storages among what a closure holds."""
    for value in values:
        if isinstance(value, Storage):
            yield value
        elif isinstance(value, tuple | list):
            yield from storages_in(value)
