"""What a segment computes: every kernel of its passes with its operations and bytes.

The tape runs the same composition as for the ledger; while a `WorkLog` is attached, operators say
which matrix products and attention kernels they are, and every other storage that is made counts
as the output of a memory-bound kernel. Nothing is noted when nobody asks.

A memory-bound kernel writes its output and reads what autograd's edges say: an input the size of
the output or a weight going forward; the gradient and what was saved going back; at least as much
as it writes. Left out: kernels that write in place and are not named by their operator.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from vram_plan.estimator.tape import Node, Param, Storage, Tape, Tensor
from vram_plan.estimator.tensors import storages_in

if TYPE_CHECKING:
    from vram_plan.estimator.costs import Run
    from vram_plan.estimator.ops.attention import Heads

__all__ = ["Kernel", "Work", "WorkLog"]

_PER_DENSE_BYTE = 1.25
"""Bytes moved for each that dequantization writes: 4-bit codes are a quarter of 16 bits."""
_ADD_IN_PLACE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel.

    Attributes:
        phase: ``forward``, ``recompute`` or ``backward``.
        kind: ``matmul``, ``scores`` (attention written out), ``attention`` (a fused kernel),
            ``memory``, ``dequantization`` or ``loss``.
        flops: operations executed.
        needed: operations that the method needs (no masked scores, nothing twice).
        bytes: read and written.
        itemsize: bytes per element of the factors; 0 without products.
        dtype: of the factors where bytes do not tell it (``fp8``, ``fp4``).
        shape: products in the batch, rows, inner and columns of each; empty without products.
    """

    phase: str
    kind: str
    flops: float = 0.0
    needed: float = 0.0
    bytes: float = 0.0
    itemsize: int = 0
    dtype: str = ""
    shape: tuple[int, ...] = ()


_NAMED = ("phase", "kind", "flops", "needed", "bytes", "itemsize", "shape")
_Values = tuple[str, str, float, float, float, int, tuple[int, ...]]
Work = tuple[tuple[Kernel, int], ...]
"""Kernels with how often each runs."""


class WorkLog:
    """Hears of every storage and every product while a segment is played."""

    __slots__ = (
        "_claimed",
        "_counts",
        "_executed",
        "_pending",
        "_returning",
        "_run",
        "override",
        "tape",
    )

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pending: list[int] = []
        self._claimed = self._returning = False
        self._executed = True
        self.override = ""
        self.tape: Tape | None = None  # set when the segment's own operators begin
        self._counts: Counter[_Values] = Counter()

    @property
    def work(self) -> Work:
        """The kernels, each with how often it ran."""
        named = ((dict[str, Any](zip(_NAMED, v, strict=True)), n) for v, n in self._counts.items())
        return tuple((Kernel(**values), count) for values, count in named)

    @property
    def phase(self) -> str:
        """What the tape is doing."""
        if self.override:
            return self.override
        contexts = self.tape.contexts if self.tape is not None else None
        if self.tape is not None and contexts is not None and contexts is not self.tape.attached:
            return "recompute"
        return "backward" if self._returning else "forward"

    def born(self, storage: Storage) -> None:
        """A storage is made; one without bytes belongs to an operator that does not run."""
        if self.tape is not None:
            self._executed = storage.nbytes > 0
            self._pending.append(storage.nbytes)

    def died(self, storage: Storage) -> None:
        """Nothing to compute."""

    def replay(self) -> None:
        """The next product is not run: its output was kept."""
        self._executed = False

    def reach(self, place: str, leaf: Node | None, attached: list[Storage]) -> None:
        """A place in the run: from ``backward`` on, the passes go back."""
        self._returning = self._returning or place == "backward"
        if place == "gradients":
            self.tape = None

    def product(self, shape: tuple[int, int, int], itemsize: int, *, batch: int = 1) -> None:
        """The last tensor made is [rows, inner] × [inner, columns] (``batch`` times)."""
        rows, _, columns = shape
        if self._executed:
            self._claim(rows * columns * batch)
            self.hidden_product(shape, itemsize, batch=batch)

    def hidden_product(self, shape: tuple[int, int, int], itemsize: int, *, batch: int = 1) -> None:
        """The same where its output is nobody's storage (added in place, freed inside)."""
        if self._executed:
            rows, inner, columns = shape
            flops = 2.0 * batch * rows * inner * columns
            moved = batch * (rows * inner + inner * columns + rows * columns) * itemsize
            self._add("matmul", flops, flops, moved, itemsize, (batch, *shape))

    def batched(self, numels: tuple[int, int, int], multiplications: int, itemsize: int) -> None:
        """The last tensor made is a batch of products; elements of both factors and the output.

        Scores, and what comes of them, are needed by half where a mask hides the future.
        """
        if not self._executed:
            return
        self._claim(numels[2])
        run, inner = self._run, multiplications // numels[2]
        heads = run.batch * max(run.spec.num_attention_heads // run.how.tensor, 1)
        batch = heads if numels[2] % heads == 0 else 1
        written = self._scores() in numels
        share = self._share(run.seq) if written else 1.0
        rows = max(numels[0] // batch // inner, 1)
        shape = (batch, rows, inner, max(numels[2] // batch // rows, 1))
        flops = 2.0 * multiplications
        kind = "scores" if written else "matmul"
        self._add(kind, flops, flops * share, sum(numels) * itemsize, itemsize, shape)

    def attention(self, s: Heads, itemsize: int, *, outputs: int = 1, masked: bool = False) -> None:
        """The last ``outputs`` tensors are a fused attention kernel's: one going forward.

        Two products per pair of query and key forward, 2 · (head_dim + value_dim) operations; five
        back, since the scores are made again (arXiv:2307.08691 section 3.1). A kernel without an
        explicit mask skips what lies in the future or outside the window.
        """
        if not self._executed:
            return
        for _ in range(outputs):
            self._claim(1)
        pairs = 2.0 * s.scores
        share = self._share(s.seq) if s.seq == s.kv_seq else 1.0
        needed = pairs * (s.head_dim + s.value_dim)
        flops = needed
        if outputs > 1:
            flops, needed = pairs * (3 * s.head_dim + 2 * s.value_dim), 2 * needed
        sides = s.heads * s.seq * (s.head_dim + s.value_dim)
        sides += s.kv_heads * s.kv_seq * (s.head_dim + s.value_dim)
        moved = s.batch * sides * itemsize * (1 if outputs == 1 else 2)
        shape = (s.batch * s.heads, s.seq, s.head_dim, s.kv_seq)
        executed = flops * (1.0 if masked else share)
        self._add("attention", executed, needed * share, moved, itemsize, shape)

    def fused_head(
        self, shape: tuple[int, int, int], rows: int, itemsize: int, *, learns: bool
    ) -> None:
        """A loss that runs head, softmax and their gradients chunk by chunk in the forward pass.

        Per chunk of ``rows``: logits, the input's gradient and, where it learns, the weight's; the
        logits are read twice and overwritten, the weight's gradient is added to.
        """
        tokens, width, columns = shape
        for _ in range(-(-tokens // rows)):
            self.hidden_product((rows, width, columns), itemsize)
            self.hidden_product((rows, columns, width), itemsize)
            self._add("memory", 0.0, 0.0, 4.0 * rows * columns * itemsize)
            if learns:
                self.hidden_product((columns, rows, width), itemsize)
                self._add("memory", 0.0, 0.0, 3.0 * columns * width * itemsize)

    def in_place(self, nbytes: int) -> None:
        """A memory-bound kernel that makes no storage."""
        if self._executed and self.tape is not None and not self.tape.rehearses:
            self._add("memory", 0.0, 0.0, nbytes)

    def label(self, kind: str) -> None:
        """What was made since the last operator is the output of kernels of this kind."""
        for nbytes in self._pending:
            if nbytes:
                self._add(kind, 0.0, 0.0, _PER_DENSE_BYTE * nbytes)
        self._pending.clear()

    def forward_done(self, out: Tensor, edges: tuple[Node | Param | None, ...]) -> None:
        """An operator has run forward."""
        size = out.numel * out.itemsize
        reads = sum(
            edge.numel * edge.itemsize if isinstance(edge, Param) else size for edge in edges
        )
        self._flush(0 if self._claimed else reads)

    def going_back(self, node: Node, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run a backward function and note what it makes and what the engine adds up."""
        assert node.fn is not None
        self._pending.clear()
        kept = storages_in(cell.cell_contents for cell in node.fn.__closure__ or ())
        arrived = grad.numel * grad.itemsize
        saved = sum(nbytes for _, nbytes in {(id(each), each.nbytes) for each in kept})
        made = node.fn(grad)
        self._flush(arrived if self._claimed else arrived + saved)
        for edge, result in zip(node.edges, made, strict=False):
            if result is not None and _adds(edge):
                self._add("memory", 0.0, 0.0, _ADD_IN_PLACE * result.numel * result.itemsize)
        return made

    def _claim(self, least: int) -> None:
        """Take the latest storage of at least so many bytes from those of memory-bound kernels."""
        self._claimed = True
        for i in range(len(self._pending) - 1, -1, -1):
            if self._pending[i] >= least:
                del self._pending[i]
                return

    def _flush(self, reads: float) -> None:
        made = [nbytes for nbytes in self._pending if nbytes]
        for nbytes in made:
            self._add("memory", 0.0, 0.0, nbytes + max(nbytes, reads / len(made)))
        self._pending.clear()
        self._claimed = False

    def _add(
        self,
        kind: str,
        flops: float,
        needed: float,
        nbytes: float,
        itemsize: int = 0,
        shape: tuple[int, ...] = (),
    ) -> None:
        phase = self.phase
        if kind == "memory" and self._run.segment.kind == "head":
            kind = "loss"
        needed = 0.0 if phase == "recompute" else needed
        self._counts[phase, kind, flops, needed, nbytes, itemsize, shape] += 1

    def _scores(self) -> int:
        run = self._run
        heads = run.spec.num_attention_heads // run.how.tensor
        return prod((run.batch, heads, run.seq, run.seq + run.how.method.prefix_tokens))

    def _share(self, seq: int) -> float:
        """Share of the pairs that a causal mask and a window leave."""
        run = self._run
        if run.segment.stack == "encoder" or not run.spec.is_causal:
            return 1.0
        window = run.spec.sliding_window if run.spec.is_windowed(max(run.layer, 0)) else seq
        seen = min(window, seq)
        return (seq * seen - seen * seen / 2) / (seq * seq)


def _adds(edge: Node | Param | None) -> bool:
    """Whether a gradient is there already, so that the engine adds."""
    if isinstance(edge, Param):
        return edge.accumulates or edge.grad is not None
    return edge is not None and edge.grad is not None
