"""Deep models from shallow traces: exact, since layers of one kind do the same.

A short model and one with a period of layers more are traced (three and four layers where all are
alike). An event of the short one has its like in the long one once one period of inner layers is
left out, and the bytes alive after it grow by the same amount with every further period. Inside
the stack they are linear in the layer's number too, so the inner layers' largest value lies at the
stack's second layer (of its kind) or at its last but one: an inner layer of the short model stands
for the one or the other, depending on which layers of the long one are left out, and all are
followed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vram_plan.bench.instants import labels
from vram_plan.bench.measurement import Instant
from vram_plan.bench.trace.align import Pair, aligned, fullest
from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.depth import Cut, cut_layers, layer_kinds, of_depth
from vram_plan.bench.trace.devices import trace_step
from vram_plan.bench.trace.timeline import Block, Trace, round_up
from vram_plan.estimator.step import TRAINING

__all__ = ["Extended", "extend", "trace_deep", "whole"]

#: Inside these phases events lie in order; in the others one tensor list follows another and
#: every sum, the peak included, is linear in the layers.
_ORDERED = ("forward", "loss", "backward")
#: Bytes of an element.
_WIDTHS = {"uint8": 1, "bf16": 2, "fp16": 2, "fp32": 4, "int64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """What a trace of the whole depth says, or would say.

    Attributes:
        layers: the depth; 0 where the layers are not in one row.
        extended_from: the depths traced; empty where the whole was.
        start_bytes: alive when the step begins.
        start_components: component → those bytes.
        phase_peaks: phase → its largest number of live bytes.
        phase_components: phase → component → bytes at that peak.
        marks: instant (``forward_end``, ``loss_end``, ``backward_end``, ``step_end``) →
            component → bytes alive then.
        instants: the plan's instants, each with its fullest moment.
        parameters: of the whole model.
        trainable_parameters: those that get gradients.
        host_bytes: the most bytes in host memory at once.
        seconds: what the traces took, imports excluded.
        notes: what should be known about the figures.
    """

    layers: int
    extended_from: tuple[int, ...]
    start_bytes: int
    start_components: dict[str, int]
    phase_peaks: dict[str, int]
    phase_components: dict[str, dict[str, int]]
    marks: dict[str, dict[str, int]]
    instants: tuple[Instant, ...]
    parameters: int
    trainable_parameters: int
    host_bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def peak_bytes(self) -> int:
        """The step's peak."""
        return max(self.phase_peaks.values())

    @property
    def peak_phase(self) -> str:
        """The phase of the peak."""
        return max(self.phase_peaks, key=lambda phase: self.phase_peaks[phase])

    def components(self, phase: str | None = None) -> dict[str, int]:
        """Component → bytes at the peak of a phase, or of the step."""
        return self.phase_components[phase or self.peak_phase]


def trace_deep(config: TraceConfig) -> Extended:
    """Trace a model of any depth: by two shallow ones where its layers repeat, else as it is."""
    kinds = layer_kinds(config)
    cut = cut_layers(kinds)
    if cut is None:
        return whole(trace_step(config), len(kinds))
    models = {depth: _shallow(config, cut.kept(depth)) for depth in (cut.short, cut.long)}
    for depth, model in models.items():
        if layer_kinds(model) != [kinds[i] for i in cut.kept(depth)]:
            return whole(trace_step(config), len(kinds))
    short, long = map(trace_step, models.values())
    found = extend(short, long, cut)
    if isinstance(found, Extended):
        return found
    traced = whole(trace_step(config), len(kinds))
    return replace(traced, notes=(*traced.notes, f"layers differ in {found}: traced as they are"))


def _shallow(config: TraceConfig, kept: list[int]) -> TraceConfig:
    """The same step of a model with these layers only."""
    frozen = sum(index < config.freeze_layers for index in kept)
    return replace(config, config=of_depth(config.config, kept), freeze_layers=frozen)


def whole(trace: Trace, layers: int) -> Extended:
    """A trace of the whole depth in the same form."""
    pairs = {phase: [(i, i) for i in numbers] for phase, numbers in _phases(trace).items()}
    return _follow(_Line(short=trace, long=trace, more=0), pairs, layers, ())


def extend(short: Trace, long: Trace, cut: Cut) -> Extended | str:
    """Follow every instant of the short model to the whole depth.

    Returns:
        The whole model's figures, or the phase in which the traces do not fit each other.
    """
    line = _Line(short=short, long=long, more=cut.more)
    pairs: dict[str, list[Pair]] = {}
    for phase in _phases(short):
        if phase not in _ORDERED:
            ours, theirs = fullest(short, phase), fullest(long, phase)
            pairs[phase] = [(ours[op], theirs[op]) for op in ours if op in theirs]
            continue
        found = aligned(short, long, phase, cut)
        if found is None:
            return phase
        pairs[phase] = found
    return _follow(line, pairs, cut.layers, (cut.short, cut.long))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """Two traces and how far to follow the line through them."""

    short: Trace
    long: Trace
    more: int

    def at(self, short: int, long: int) -> int:
        """The figure of the whole model."""
        return short + self.more * (long - short)

    def live(self, pair: Pair) -> int:
        """Bytes alive after a pair of events."""
        found = self.at(self.short.events[pair[0]].live, self.long.events[pair[1]].live)
        return found + sum(self._rounding(pair).values())

    def _rounding(self, pair: Pair) -> dict[str, int]:
        """Component → bytes: a tensor with a number for every weight is rounded up once.

        Such are the gradient norm's partial results and the norms of all gradients together.
        """
        if self.short.events[pair[0]].phase != "clip":
            return {}
        ours, theirs = _alone(self.short, pair[0] + 1), _alone(self.long, pair[1] + 1)
        found: dict[str, int] = {}
        for op in ours.keys() & theirs.keys():
            first, second = ours[op], theirs[op]
            exact = round_up(self.at(_raw_bytes(first), _raw_bytes(second)))
            spread = exact - self.at(first.bytes, second.bytes)
            found[first.component] = found.get(first.component, 0) + spread
        return found

    def components_at(self, pair: Pair) -> dict[str, int]:
        """Component → bytes alive after a pair of events."""
        found = self.components((pair[0] + 1, pair[1] + 1))
        for name, size in self._rounding(pair).items():
            found[name] = found.get(name, 0) + size
        return found

    def components(self, counts: Pair) -> dict[str, int]:
        """Component → bytes alive after so many events."""
        before, after = _sums(self.short, counts[0]), _sums(self.long, counts[1])
        found = {n: self.at(before.get(n, 0), after.get(n, 0)) for n in {**before, **after}}
        return {name: size for name, size in found.items() if size}


def _follow(
    line: _Line, pairs: Mapping[str, list[Pair]], layers: int, depths: tuple[int, ...]
) -> Extended:
    short, long = line.short, line.long
    named = labels(short.events)
    phases: dict[str, Pair] = {}
    instants: dict[str, Pair] = {}
    for phase, found in pairs.items():
        for pair in found:
            for best, name in ((phases, phase), (instants, named[pair[0]])):
                if name not in best or line.live(pair) > line.live(best[name]):
                    best[name] = pair
    order = {name: place for place, name in enumerate(TRAINING)}
    chosen = {*phases.values(), *instants.values()}
    parts = {pair: line.components_at(pair) for pair in chosen}
    return Extended(
        layers=layers,
        extended_from=depths,
        start_bytes=line.at(short.start_bytes, long.start_bytes),
        start_components=line.components((0, 0)),
        phase_peaks={phase: line.live(pair) for phase, pair in phases.items()},
        phase_components={phase: parts[pair] for phase, pair in phases.items()},
        marks={
            name: line.components((short.marks[name], long.marks[name])) for name in short.marks
        },
        instants=tuple(
            Instant(name=name, bytes=line.live(pair), components=parts[pair])
            for name, pair in sorted(
                instants.items(), key=lambda item: order.get(item[0], len(order))
            )
        ),
        parameters=line.at(short.parameters, long.parameters),
        trainable_parameters=line.at(short.trainable_parameters, long.trainable_parameters),
        host_bytes=line.at(short.host_bytes, long.host_bytes),
        seconds=short.seconds + (long.seconds if depths else 0),
        notes=tuple(short.notes),
    )


def _phases(trace: Trace) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, event in enumerate(trace.events):
        found.setdefault(event.phase, []).append(number)
    return found


def _alone(trace: Trace, count: int) -> dict[str, Block]:
    """Operator → what it made while clipping, where that is one block."""
    made: dict[str, list[Block]] = {}
    for block in trace.alive_after(count):
        if block.phase == "clip":
            made.setdefault(block.op, []).append(block)
    return {op: blocks[0] for op, blocks in made.items() if len(blocks) == 1}


def _raw_bytes(block: Block) -> int:
    return math.prod(block.shape) * _WIDTHS.get(block.dtype, 4)


def _sums(trace: Trace, count: int) -> dict[str, int]:
    sums: dict[str, int] = {}
    for block in trace.alive_after(count):
        sums[block.component] = sums.get(block.component, 0) + block.bytes
    return sums
