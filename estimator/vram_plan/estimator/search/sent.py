"""What a step sends at least with a micro-batch no larger than some: told again, not worked out.

What data-parallel ranks exchange, and what goes to the host for states, does not depend on the
micro-batch and hardly on how activations are kept, so a few recipes share it on a machine. What
goes to the host of activations is affine in the micro-batch but for rounding. A test holds both to
the traffic of a plan.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from operator import attrgetter

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.offload import of_activations, of_states, sends_activations
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
"""Fields that what is told again does not depend on, or in the one way that `_steady_key` says."""
_OTHERS = attrgetter(*(one.name for one in fields(TrainConfig) if one.name not in _IDLE))
_ROUNDING = 0.99
"""Share of activations' bytes on that line that is certain: tensors are rounded up, two perhaps and
many not."""
_Steady = tuple[tuple[Transfer, ...], tuple[Transfer, ...]]


class Sent:
    """Traffic of a search's configurations, remembered by machine."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Steady | None] = {}

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
        key = (most.gpus, _steady_key(config))
        if key not in self._known:
            self._known[key] = _steady(config, most)
        steady = self._known[key]
        if steady is None:
            raise NotModelled("a rate is missing")
        data, states = steady
        splits = of_splits(config) if config.tp * config.pp * config.cp * config.ep > 1 else ()
        if not sends_activations(config):
            return (*data, *splits, *states)
        return (*data, *splits, *states, *of_activations(config, _ROUNDING * host_bytes))


def _steady(config: TrainConfig, most: TrainConfig) -> _Steady | None:
    try:
        return of_data(config), of_states(most)
    except NotModelled:
        return None


def _steady_key(config: TrainConfig) -> Hashable:
    """Equal for configurations whose steady traffic is equal."""
    assert config.gpu is not None
    recomputes = config.zero == 3 and config.checkpointing in {"full", "offload"}
    offload = config.offload if config.offload.startswith("optimizer") else ""
    node = config.node.name if config.node else ""
    return (_OTHERS(config), recomputes, offload, config.gpu.name, node)
