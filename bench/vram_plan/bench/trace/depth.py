"""Which layers of a deep model a shallow one must keep to stand for it.

A model's layers are read as a row of kinds: a head, a part that repeats with some period (1 for
most; 2 for Gemma 2, 6 for Gemma 3, 4 for Qwen3-Next), and a tail. Whole periods can be left out.
"""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vram_plan.bench.trace.build import bare_model, model_config
from vram_plan.bench.trace.config import TraceConfig

__all__ = ["Cut", "cut_layers", "layer_kinds", "of_depth"]

_MAX_PERIOD = 12
_MAX_HEAD = 16
_MAX_TAIL = 6
#: Fewer layers saved than this are not worth two traces.
_LEAST_SAVING = 2
#: The names under which configurations keep the depth of a stack.
_DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
_SIMPLE = (bool, int, str, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A row of layers as head, periods and tail.

    Attributes:
        layers: all of them.
        head: layers before the repeating part, the first layer always among them.
        period: layers of one repetition.
        tail: layers after it, the last always among them.
    """

    layers: int
    head: int
    period: int
    tail: int

    @property
    def short(self) -> int:
        """The fewest layers in which each kind of inner layer still has both its neighbours."""
        least = self.head + self.period + self.tail
        return least + (self.layers - least) % self.period

    @property
    def long(self) -> int:
        """One period more."""
        return self.short + self.period

    @property
    def more(self) -> int:
        """Periods between the short model and the whole one."""
        return (self.layers - self.short) // self.period

    @property
    def windows(self) -> range:
        """Where a window of one period can be taken out of the long model."""
        return range(self.head, self.short - self.tail + 1)

    def kept(self, depth: int) -> list[int]:
        """The whole model's layers that a model of ``depth`` layers keeps."""
        return [*range(depth - self.tail), *range(self.layers - self.tail, self.layers)]


def cut_layers(kinds: Sequence[Hashable]) -> Cut | None:
    """The cut with the fewest layers to trace; None where the whole costs no more."""
    best: Cut | None = None
    layers = len(kinds)
    for period in range(1, min(_MAX_PERIOD, layers) + 1):
        for head in range(1, min(_MAX_HEAD, layers)):
            tail = _shortest_tail(kinds, head, period)
            if tail is None:
                continue
            cut = Cut(layers=layers, head=head, period=period, tail=tail)
            if best is None or cut.short + cut.long < best.short + best.long:
                best = cut
            break  # a longer head only adds layers
    if best is None or best.short + best.long > layers + 2 * _LEAST_SAVING or best.more < 2:
        return None
    return best


def _shortest_tail(kinds: Sequence[Hashable], head: int, period: int) -> int | None:
    """Layers at the end that do not repeat; None where too little does."""
    end = head + period
    while end < len(kinds) and kinds[end] == kinds[end - period]:
        end += 1
    tail = max(len(kinds) - end, 1)
    return tail if tail <= _MAX_TAIL and head + period + tail <= len(kinds) else None


def layer_kinds(config: TraceConfig) -> list[Hashable]:
    """What tells the layers of a model apart; empty where they do not form one row.

    An encoder-decoder's two stacks of one depth count as one row of pairs.
    """
    model = bare_model(replace(config, attention="eager"))
    stacks = _stacks(model)
    if len(stacks) not in (1, 2) or len({len(stack) for stack in stacks}) != 1:
        return []
    frozen = config.freeze_layers if config.method == "freeze" else 0
    if len(stacks) > 1 and frozen > len(stacks[0]):
        return []  # the decoder's blocks are counted after the encoder's
    rows = [[_kind(layer) for layer in stack] for stack in stacks]
    return [(*row, index < frozen) for index, row in enumerate(zip(*rows, strict=True))]


def _stacks(model: torch.nn.Module) -> list[torch.nn.ModuleList]:
    """The outermost lists of modules."""
    found: list[torch.nn.ModuleList] = []
    waiting: list[torch.nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        if isinstance(module, torch.nn.ModuleList):
            found.append(module)
        else:
            waiting += module.children()
    return found


def _kind(layer: torch.nn.Module) -> Hashable:
    """Classes, sizes and switches of a layer; its number and numbers made from it left out."""
    parts: list[Hashable] = []
    for name, module in layer.named_modules():
        simple = [
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, _SIMPLE) and "idx" not in key and "layer_id" not in key
        ]
        shapes = [
            (key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False)
        ]
        parts.append((name, type(module).__name__, *simple, *shapes))
    return tuple(parts)


def of_depth(config: Any, kept: Sequence[int]) -> Any:
    """The same model with these layers only; lists with an item a layer keep theirs."""
    whole = model_config(config)
    shape = copy.deepcopy(whole)
    depth = whole.num_hidden_layers
    for name, value in list(vars(shape).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(shape, name, [value[index] for index in kept])
    for name in _DEPTHS:
        if getattr(shape, name, None) == depth:
            setattr(shape, name, len(kept))
    return shape
