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

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.links import group_of, wires
from vram_plan.estimator.speed.offload import of_activations, of_states, sends_activations
from vram_plan.estimator.speed.techniques.ddp import COPIED
from vram_plan.estimator.speed.traffic import NotModelled, Transfer, of_data, of_splits

_IDLE = frozenset(
    {
        "micro_batch",
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
"""Fields that what is told again does not depend on, or in the one way that its key says."""
_OTHERS = attrgetter(*(one.name for one in fields(TrainConfig) if one.name not in _IDLE))
_OF_STATES = frozenset(
    {
        "gpus",
        "gpus_per_node",
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
"""Fields that tensor ranks do not depend on, or through their group alone."""
_OF_TENSORS = attrgetter(*(one.name for one in fields(TrainConfig) if one.name not in _OF_STATES))
_ROUNDING = 0.99
"""Share of activations' bytes on that line that is certain: tensors are rounded up, two perhaps and
many not."""
_Sent = tuple[Transfer, ...]


class Sent:
    """Traffic of a search's configurations, remembered by links and by machine."""

    def __init__(self) -> None:
        self._data: dict[Hashable, tuple[float, _Sent] | None] = {}
        self._states: dict[Hashable, _Sent | None] = {}
        self._tensors: dict[Hashable, _Sent] = {}

    def at_least(
        self, config: TrainConfig, host_bytes: float, most: TrainConfig
    ) -> tuple[Transfer, ...]:
        """In the order of `traffic.transfers`.

        Args:
            config: with its micro-batch.
            host_bytes: of activations that go to the host, if they do, on the line through one
                sequence and two.
            most: on as many GPUs or more: whose states are sent to the host.

        Raises:
            NotModelled: the catalogue lacks a rate that is needed.
        """
        data, states = self._exchanged(config), self._moved(config, most)
        splits = self._split(config)
        if not sends_activations(config):
            return (*data, *splits, *states)
        return (*data, *splits, *states, *of_activations(config, _ROUNDING * host_bytes))

    def _exchanged(self, config: TrainConfig) -> _Sent:
        """Between data ranks."""
        assert config.gpu is not None
        bandwidth = config.gpu.memory_bandwidth_bytes_per_s
        recomputes = config.zero == 3 and config.checkpointing in {"full", "offload"}
        key = (_OTHERS(config), recomputes, wires(config))
        if key not in self._data:
            found = _known(of_data, config)
            self._data[key] = None if found is None else (bandwidth, found)
        known = self._data[key]
        if known is None:
            raise NotModelled("a rate is missing")
        first, sent = known
        return sent if first == bandwidth else _copied_at(first / bandwidth, sent)

    def _split(self, config: TrainConfig) -> _Sent:
        """Between the ranks that a layer or a sequence is split over."""
        if config.pp * config.cp * config.ep > 1:
            return of_splits(config)
        if config.tp == 1:
            return ()
        key = (_OF_TENSORS(config), group_of(config, config.tp))
        if key not in self._tensors:
            self._tensors[key] = of_splits(config)
        return self._tensors[key]

    def _moved(self, config: TrainConfig, most: TrainConfig) -> _Sent:
        """States to the host and back."""
        if not config.offload.startswith("optimizer"):
            return ()
        assert config.gpu is not None
        recomputes = config.zero == 3 and config.checkpointing in {"full", "offload"}
        node = config.node.name if config.node else ""
        key = (most.gpus, _OTHERS(config), recomputes, config.offload, config.gpu.name, node)
        if key not in self._states:
            self._states[key] = _known(of_states, most)
        states = self._states[key]
        if states is None:
            raise NotModelled("a rate is missing")
        return states


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
