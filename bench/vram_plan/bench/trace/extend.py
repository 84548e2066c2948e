"""Deep models from shallow traces: exact, since every layer does the same.

Three and four layers are traced. An event of the three has its like in the four once one inner
layer is left out, and the bytes alive after it grow by the same amount with every further layer.
Inside the stack they are linear in the layer's number too, so the inner layers' largest value lies
at the stack's second layer or at its last but one: the middle layer of three stands for the one or
the other, depending on which inner layer of the four is left out, and both are followed.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vram_plan.bench.trace.config import TraceConfig
from vram_plan.bench.trace.timeline import Trace

__all__ = ["Extended", "extend", "trace_deep"]

_SHALLOW = 3
#: Inside these phases events lie in order; in the others one tensor list follows another and
#: every sum, the peak included, is linear in the layers.
_ORDERED = ("forward", "loss", "backward")
_LAYER = re.compile(r"^(.*?\.)(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extended:
    """What a trace of the whole depth would say.

    Attributes:
        layers: the depth.
        extended_from: the depths traced.
        start_bytes: alive when the step begins.
        phase_peaks: phase → its largest number of live bytes.
        phase_components: phase → component → bytes at that peak.
        parameters: of the whole model.
        trainable_parameters: those that get gradients.
        seconds: what the traces took, imports excluded.
    """

    layers: int
    extended_from: tuple[int, int]
    start_bytes: int
    phase_peaks: dict[str, int]
    phase_components: dict[str, dict[str, int]]
    parameters: int
    trainable_parameters: int
    seconds: float

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
    """Trace a model of any depth by two shallow ones."""
    from vram_plan.bench.trace import trace_step
    from vram_plan.bench.trace.build import model_config

    layers = model_config(config.config).num_hidden_layers
    if layers <= _SHALLOW + 1:
        raise ValueError(f"{layers} layers are few enough to trace as they are: use trace_step")
    _same_layers(model_config(config.config), layers)
    traces = [
        trace_step(replace(config, config=of_depth(config.config, depth)))
        for depth in (_SHALLOW, _SHALLOW + 1)
    ]
    return extend(traces[0], traces[1], layers)


def _same_layers(shape: Any, layers: int) -> None:
    """Refuse models whose inner layers are of several kinds."""
    for name, value in vars(shape).items():
        if (
            isinstance(value, list)
            and len(value) == layers
            and len(set(map(repr, value[1:-1]))) > 1
        ):
            raise ValueError(f"{name} names several kinds of layers: trace the model as it is")


def of_depth(config: Any, layers: int) -> Any:
    """The same model with another number of layers; lists with an item a layer are cut."""
    from vram_plan.bench.trace.build import model_config

    whole = model_config(copy.deepcopy(dict(config)) if isinstance(config, Mapping) else config)
    shape = copy.deepcopy(whole)
    depth = whole.num_hidden_layers
    for name, value in list(vars(shape).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(shape, name, value[:layers])
    shape.num_hidden_layers = layers
    if getattr(shape, "num_decoder_layers", None) is not None:
        shape.num_decoder_layers = layers
    return shape


def extend(short: Trace, long: Trace, layers: int) -> Extended:
    """Follow every instant of three and four layers to ``layers``."""
    more = layers - _SHALLOW
    peaks: dict[str, int] = {}
    parts: dict[str, dict[str, int]] = {}
    for phase in short.phases:
        pairs = (
            _aligned(short, long, phase)
            if phase in _ORDERED
            else [(short.peak_index(phase), long.peak_index(phase))]
        )
        first, second = max(
            pairs,
            key=lambda pair: _line(short.events[pair[0]].live, long.events[pair[1]].live, more),
        )
        peaks[phase] = _line(short.events[first].live, long.events[second].live, more)
        before, after = _components(short, first), _components(long, second)
        names = {**before, **after}
        parts[phase] = {n: _line(before.get(n, 0), after.get(n, 0), more) for n in names}
    return Extended(
        layers=layers,
        extended_from=(_SHALLOW, _SHALLOW + 1),
        start_bytes=_line(short.start_bytes, long.start_bytes, more),
        phase_peaks=peaks,
        phase_components=parts,
        parameters=_line(short.parameters, long.parameters, more),
        trainable_parameters=_line(short.trainable_parameters, long.trainable_parameters, more),
        seconds=short.seconds + long.seconds,
    )


def _line(short: int, long: int, more: int) -> int:
    return short + more * (long - short)


def _components(trace: Trace, index: int) -> dict[str, int]:
    sums: dict[str, int] = {}
    for block in trace.alive_after(index + 1):
        sums[block.component] = sums.get(block.component, 0) + block.bytes
    return sums


def _aligned(short: Trace, long: Trace, phase: str) -> list[tuple[int, int]]:
    """Pairs of events that are each other's like."""
    ours = _keys(short, phase, dropped=None)
    pairs: list[tuple[int, int]] = []
    for dropped in range(1, _SHALLOW):
        theirs = _keys(long, phase, dropped)
        if [key for key, _ in ours] != [key for key, _ in theirs]:
            raise ValueError(
                f"the layers differ in {phase}, so this model cannot be extended from shallow "
                "traces: trace it as it is"
            )
        pairs += [(i, j) for (_, i), (_, j) in zip(ours, theirs, strict=True)]
    return pairs


def _keys(trace: Trace, phase: str, dropped: int | None) -> list[tuple[Any, int]]:
    """The phase's events with their places, without what happens while one layer runs.

    A block is known by its layer's distance from the running one; where no layer runs, by its
    layer, those above the dropped one renamed.
    """
    found: list[tuple[Any, int]] = []
    for index, event in enumerate(trace.events):
        if event.phase != phase or event.delta < 0:
            continue  # a peak never comes with a free, and the order of frees is not fixed
        stack, running, _ = _layer_of(event.where)
        home, layer, rest = _layer_of(event.block.module)
        if dropped in (running, layer if running is None else running) and dropped is not None:
            continue
        near = running is not None and layer is not None and abs(layer - running) <= 1
        if near and home == stack:
            place: Any = ("distance", (layer or 0) - (running or 0))
        else:
            place = _renamed(layer, dropped)
        block = event.block
        key = (event.delta, block.op, block.phase, home, place, rest)
        found.append(((stack, _renamed(running, dropped), *key), index))
    return found


def _renamed(layer: int | None, dropped: int | None) -> int | None:
    if layer is None or dropped is None or layer < dropped:
        return layer
    return layer - 1


def _layer_of(path: str) -> tuple[str, int | None, str]:
    """The stack's path, the layer's number and the rest."""
    match = _LAYER.match(path)
    if match is None:
        return path, None, ""
    return match[1], int(match[2]), path[match.end() :]
