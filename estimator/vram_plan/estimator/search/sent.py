"""What a step sends at least with a micro-batch no larger than some: told again, not worked out.

What data-parallel ranks exchange, and what goes to the host for states, does not depend on the
micro-batch and hardly on how activations are kept, so a few recipes share it on a machine; what
ranks exchange is the same for all GPUs with the same links, but for the copies inside a GPU, which
its bandwidth prices anew. What tensor ranks exchange does not depend on how states are sharded.
What goes to the host of activations is affine in the micro-batch but for rounding. Tests hold all
of it to the traffic of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, replace
from operator import attrgetter
from typing import NamedTuple

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.links import wires
from vram_plan.estimator.speed.offload import of_activations, of_states, sends_activations
from vram_plan.estimator.speed.techniques.ddp import COPIED
from vram_plan.estimator.speed.traffic import NotModelled, Transfer, of_data, of_splits

_IDLE = frozenset(
    {
        "gpus",
        "gpus_per_node",
        "micro_batch",
        "grad_accum",
        "seq_len",
        "source_len",
        "lengths",
        "loss",
        "checkpointing",
        "offload",
        "assumptions",
        "gpu",
        "node",
    }
)
"""Fields that data ranks do not depend on, or in the one way that a key says."""
_OTHERS = attrgetter(*(one.name for one in fields(TrainConfig) if one.name not in _IDLE))
_OF_STATES = frozenset(
    {
        "gpus",
        "gpus_per_node",
        "micro_batch",
        "grad_accum",
        "zero",
        "zero_sizes",
        "offload",
        "offload_device",
        "optimizer",
        "assumptions",
        "gpu",
        "node",
    }
)
"""Fields that tensor ranks do not depend on, or through their group alone, or as a key says."""
_OF_TENSORS = attrgetter(*(one.name for one in fields(TrainConfig) if one.name not in _OF_STATES))
_ROUNDING = 0.99
"""Share of activations' bytes on that line that is certain: tensors are rounded up, two perhaps and
many not."""
_Sent = tuple[Transfer, ...]


class Alike(NamedTuple):
    """Numbers that are equal where data ranks, and tensor ranks, send the same on a machine."""

    data: int
    tensors: int


class Sent:
    """Traffic of a search's configurations, remembered by links and by machine."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._wired: dict[Hashable, int] = {}
        self._data: dict[Hashable, tuple[float, _Sent] | None] = {}
        self._states: dict[Hashable, _Sent | None] = {}
        self._tensors: dict[Hashable, _Sent | None] = {}

    def alike(self, config: TrainConfig) -> Alike:
        """Worked out once for a recipe: its machine and its batch do not matter."""
        recomputes = config.zero == 3 and config.checkpointing in {"full", "offload"}
        data = self._number(("data", recomputes, _OTHERS(config)))
        return Alike(data, self._number(("tensors", _OF_TENSORS(config))))

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def at_least(
        self, config: TrainConfig, alike: Alike, host_bytes: float, most: TrainConfig
    ) -> tuple[Transfer, ...]:
        """In the order of `traffic.transfers`.

        Args:
            config: with its micro-batch, where that matters (`depends_on_batch`).
            alike: what `alike` says of it.
            host_bytes: of activations that go to the host, if they do, on the line through one
                sequence and two.
            most: on as many GPUs or more: whose states are sent to the host.

        Raises:
            NotModelled: the catalogue lacks a rate that is needed.
        """
        on = (config.gpus, config.grad_accum, self._wires(config))
        moves = config.offload.startswith("optimizer")
        data = self._exchanged(config, (alike.data, on))
        states = self._moved((alike.data, on), most) if moves else ()
        splits = self._split(config, alike) if is_split(config) else ()
        if not sends_activations(config):
            return (*data, *splits, *states)
        return (*data, *splits, *states, *of_activations(config, _ROUNDING * host_bytes))

    def _wires(self, config: TrainConfig) -> int:
        """A number for each kind of links."""
        assert config.gpu is not None
        key = (config.gpu.name, config.node and config.node.name, config.gpus_per_node)
        if key not in self._wired:
            self._wired[key] = self._number(("wires", wires(config)))
        return self._wired[key]

    def _exchanged(self, config: TrainConfig, key: Hashable) -> _Sent:
        """Between data ranks."""
        assert config.gpu is not None
        bandwidth = config.gpu.memory_bandwidth_bytes_per_s
        if key not in self._data:
            found = _known(of_data, config)
            self._data[key] = None if found is None else (bandwidth, found)
        known = self._data[key]
        if known is None:
            raise NotModelled("a rate is missing")
        first, sent = known
        return sent if first == bandwidth else _copied_at(first / bandwidth, sent)

    def _split(self, config: TrainConfig, alike: Alike) -> _Sent:
        """Between the ranks that a layer or a sequence is split over."""
        if config.pp * config.cp * config.ep > 1:
            return of_splits(config)
        key = (alike.tensors, config.micro_batch, config.grad_accum, self._wires(config))
        if key not in self._tensors:
            self._tensors[key] = _known(of_splits, config)
        return _modelled(self._tensors[key])

    def _moved(self, key: Hashable, most: TrainConfig) -> _Sent:
        """States to the host and back."""
        assert most.gpu is not None
        node = most.node.name if most.node else ""
        full = (key, most.gpus, most.offload, most.gpu.name, node)
        if full not in self._states:
            self._states[full] = _known(of_states, most)
        return _modelled(self._states[full])


def is_split(config: TrainConfig) -> bool:
    """Whether a layer or a sequence is spread over ranks."""
    return config.tp * config.pp * config.cp * config.ep > 1


def depends_on_batch(config: TrainConfig) -> bool:
    """Whether the micro-batch matters for what is sent."""
    return is_split(config) or sends_activations(config)


def _modelled(sent: _Sent | None) -> _Sent:
    if sent is None:
        raise NotModelled("a rate is missing")
    return sent


def _known(of: Callable[[TrainConfig], _Sent], config: TrainConfig) -> _Sent | None:
    try:
        return of(config)
    except NotModelled:
        return None


def _copied_at(slower: float, sent: _Sent) -> _Sent:
    """With copies inside a GPU that take so many times as long."""
    return tuple(
        replace(one, seconds=one.seconds * slower) if one.part == COPIED else one for one in sent
    )
