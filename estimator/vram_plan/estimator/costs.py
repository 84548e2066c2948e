"""What one segment is run with, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vram_plan.estimator.carried import Carried
from vram_plan.estimator.segment import Composition, Segment
from vram_plan.estimator.tape import Param, Tensor
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

    @staticmethod
    def of(x: Tensor) -> Boundary:
        """What a segment sees of a tensor that another one made."""
        return Boundary(numel=x.numel, itemsize=x.itemsize, requires_grad=x.node is not None)


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
        input_stays: that tensor, a leaf of the graph, stays while its checkpoint goes to the host.
        late: bytes of gradients that later segments have left for what this one makes (prefixes).
        local: bytes of the model's local variables that no segment makes, where it returns.
        incoming: component of the gradient of its output, which the segment behind it has made.
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
    input_stays: bool = False
    late: int = 0
    local: int = 0
    incoming: str = "temporaries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one segment costs, in bytes by component.

    Attributes:
        params: its weights (of the base model and of the method) on this rank.
        saved: alive after its forward pass, its input included, its output not.
        cast: what lives until the loss is there, beyond what is in ``saved``: low-precision
            copies of weights that autocast keeps, keys and values in a cache.
        forward: the fullest moment of its forward pass.
        backward: the fullest moment of its backward pass, recomputation included.
        later: the fullest moment of its backward pass from the first weight's gradient on.
        gradients: bytes of weight gradients it leaves behind.
        left: the tensor it hands on.
        produced: what it made for later segments, by name.
        kept: names of carried tensors whose bytes are in ``saved``.
        host: bytes it sends to host memory until its backward pass.
        attached: bytes among ``saved`` that live until the whole backward pass is over.
        asked: bytes of gradients of tensors that are no weights, which live as long.
        taken: bytes of its prefix, which was made before the first segment.
        left_late: bytes of gradients that it leaves for the maker of its prefix.
        early: bytes of weight gradients that the loss itself makes.
        with_loss: what a part of the loss that is made of weights holds beside ``saved``.
        returned: the logits and the encoder's output that the model returns, where ``saved`` lacks
            them.
        waiting: such bytes where a gradient is there already: they wait for the segment's own,
            and are added to it in place.
        reduced: bytes of buffers that an engine leaves until the backward pass is over.
        keeps_input: its input is among what it keeps.
        keeps_output: its output is, a leaf of the graph.
        passed: the name among ``produced`` of the tensor that it hands on.
        outgoing: component of the gradient that it hands back to the segment before.
    """

    params: tuple[Param, ...]
    saved: Bytes
    cast: Bytes
    forward: Bytes
    backward: Bytes
    gradients: int
    left: Boundary
    produced: tuple[tuple[str, Boundary], ...] = ()
    kept: frozenset[str] = frozenset()
    host: int = 0
    attached: int = 0
    asked: int = 0
    taken: int = 0
    left_late: int = 0
    early: int = 0
    with_loss: Bytes = field(default_factory=dict)
    returned: Bytes = field(default_factory=dict)
    waiting: int = 0
    reduced: int = 0
    keeps_input: bool = False
    keeps_output: bool = False
    passed: str = ""
    later: Bytes = field(default_factory=dict)
    outgoing: str = ""


BESIDE: list[Callable[[Run], Cost]] = []
"""How segments are played while more is wanted of them than bytes (``speed/worked.py``)."""
