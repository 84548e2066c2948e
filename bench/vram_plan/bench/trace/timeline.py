"""What a trace saw: allocations and frees in order, and the questions one asks of them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vram_plan.bench.instants import instants_of
from vram_plan.bench.measurement import Instant

__all__ = ["Block", "Event", "Trace", "round_up"]

#: CUDA's caching allocator hands out multiples of this many bytes
#: (pytorch c10/cuda/CUDACachingAllocator.h, ``kMinBlockSize``).
GRAIN_BYTES = 512


def round_up(size: int) -> int:
    """Bytes the allocator takes for ``size`` bytes; an empty tensor takes none."""
    return (size + GRAIN_BYTES - 1) // GRAIN_BYTES * GRAIN_BYTES


@dataclass(slots=True, kw_only=True)
class Block:
    """One allocation: a storage and where it came from.

    Attributes:
        number: allocations are numbered from 0.
        bytes: as the allocator counts them.
        shape: of the first tensor seen on it.
        dtype: likewise.
        op: the operator that made it.
        module: the path of the module whose code ran, or the parameter's name.
        phase: the part of the step that made it.
        component: the plan's word for it; known at the end.
        recomputed: made by a recomputation during backward.
        in_backward: made by a backward node.
        role: the component that its making tells, where nobody who holds it says another.
    """

    number: int
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    module: str
    phase: str
    component: str = ""
    recomputed: bool = False
    in_backward: bool = False
    role: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One change: ``delta`` bytes at ``block``; ``live`` is the total after it.

    ``where`` is the module whose operator ran last: a block is often freed in another module than
    it was made in.
    """

    block: Block
    delta: int
    live: int
    phase: str
    where: str = ""

    @property
    def kind(self) -> str:
        """``alloc``, ``free``, or ``phase`` where a phase begins."""
        if self.delta == 0:
            return "phase"
        return "alloc" if self.delta > 0 else "free"


@dataclass(slots=True, kw_only=True)
class Trace:
    """The measured step.

    Attributes:
        start_bytes: alive when the measured step begins.
        start_blocks: those blocks.
        events: every allocation and free from there on.
        marks: name of an instant → number of events before it (``forward_end`` …).
        seconds: what tracing took, imports excluded.
        host_bytes: the most bytes that the step holds in host memory at once.
        history: every event before the measured step, from the loading of the weights on (only
            where ``TraceConfig.history`` asked for it).
    """

    start_bytes: int
    start_blocks: list[Block]
    events: list[Event]
    marks: dict[str, int]
    seconds: float = 0.0
    parameters: int = 0
    trainable_parameters: int = 0
    host_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    history: list[Event] = field(default_factory=list)

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in their order."""
        return tuple(dict.fromkeys(event.phase for event in self.events))

    @property
    def peak_bytes(self) -> int:
        """The largest number of live bytes in the step."""
        return max((event.live for event in self.events), default=self.start_bytes)

    @property
    def phase_peaks(self) -> dict[str, int]:
        """Phase → its largest number of live bytes."""
        peaks: dict[str, int] = {}
        for event in self.events:
            peaks[event.phase] = max(peaks.get(event.phase, 0), event.live)
        return peaks

    @property
    def peak_phase(self) -> str:
        """The phase of the peak."""
        return self.events[self.peak_index()].phase

    @property
    def instants(self) -> tuple[Instant, ...]:
        """The fullest moment of every instant of the plan."""
        return instants_of(self.events, self.start_blocks)

    def peak_index(self, phase: str | None = None) -> int:
        """Number of the event after which most bytes are alive."""
        numbers = [i for i, e in enumerate(self.events) if phase in (None, e.phase)]
        if not numbers:
            raise ValueError(f"no phase {phase!r}; phases: {', '.join(self.phases)}")
        return max(numbers, key=lambda number: self.events[number].live)

    def alive_after(self, count: int) -> list[Block]:
        """Blocks alive once the first ``count`` events have happened."""
        alive = {block.number: block for block in self.start_blocks}
        for event in self.events[:count]:
            if event.delta > 0:
                alive[event.block.number] = event.block
            elif event.delta < 0:
                alive.pop(event.block.number, None)
        return list(alive.values())

    def alive_at_peak(self, phase: str | None = None) -> list[Block]:
        """Blocks alive at the peak of a phase, or of the step."""
        return self.alive_after(self.peak_index(phase) + 1)

    def alive_at(self, mark: str) -> list[Block]:
        """Blocks alive at a mark, such as ``forward_end``."""
        if mark not in self.marks:
            raise ValueError(f"no mark {mark!r}; marks: {', '.join(self.marks)}")
        return self.alive_after(self.marks[mark])

    def kept(self, module: str, mark: str = "forward_end") -> list[Block]:
        """What this step made in ``module`` (a path or its beginning) and keeps at ``mark``."""
        before = {block.number for block in self.start_blocks}
        return [
            block
            for block in self.alive_at(mark)
            if block.number not in before and _under(block.module, module)
        ]

    def components(self, phase: str | None = None) -> dict[str, int]:
        """Component → bytes at the peak."""
        sums: dict[str, int] = {}
        for block in self.alive_at_peak(phase):
            sums[block.component] = sums.get(block.component, 0) + block.bytes
        return sums

    def print_peak(
        self, phase: str | None = None, rows: int = 60, *, collapse: bool = False
    ) -> None:
        """Print what is alive at the peak; ``collapse`` takes all layers together."""
        index = self.peak_index(phase)
        event = self.events[index]
        print(
            f"peak of {phase or 'the step'}: {event.live:,} bytes in {event.phase} "
            f"(event {index}: {event.block.op} in {event.block.module or '-'})"
        )
        self.print_blocks(self.alive_at_peak(phase), rows, collapse=collapse)

    def print_blocks(
        self, blocks: Iterable[Block], rows: int = 60, *, collapse: bool = False
    ) -> None:
        """Print blocks, grouped by component, phase, module, op, shape and dtype."""
        for line in _table(blocks, rows, collapse):
            print(line)

    def summary(self) -> str:
        """Peaks by phase, one line each."""
        lines = [f"peak {self.peak_bytes:,} bytes ({self.peak_phase}); start {self.start_bytes:,}"]
        lines += [f"  {phase:<10} {peak:>18,}" for phase, peak in self.phase_peaks.items()]
        return "\n".join(lines)


def _under(path: str, module: str) -> bool:
    return path == module or path.startswith(module + ".")


def _table(blocks: Iterable[Block], rows: int, collapse: bool) -> Iterator[str]:
    groups: dict[tuple[str, str, str, str, str, str], list[int]] = {}
    for block in blocks:
        shape = "x".join(map(str, block.shape)) or "scalar"
        module = re.sub(r"\b\d+\b", "*", block.module) if collapse else block.module
        key = (block.component, block.phase, module, block.op, shape, block.dtype)
        groups.setdefault(key, []).append(block.bytes)
    total = sum(sum(sizes) for sizes in groups.values())
    yield f"{total:>18,}  total of {sum(map(len, groups.values()))} tensors"
    ordered = sorted(groups.items(), key=lambda item: -sum(item[1]))
    for (component, phase, path, op, shape, dtype), sizes in ordered[:rows]:
        yield (
            f"{sum(sizes):>18,}  {len(sizes):>3} × {shape:<22} {dtype:<8} {component:<16} "
            f"{phase:<9} {path or '-'} [{op}]"
        )
    if len(ordered) > rows:
        rest = sum(sum(sizes) for _, sizes in ordered[rows:])
        yield f"{rest:>18,}  in {len(ordered) - rows} more groups"
