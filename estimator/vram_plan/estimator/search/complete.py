"""Recipes filled in once, then put on machines: only what names the machine differs between them.

Of what ``resolve`` fills in, the engine asks whether there is more than one GPU (the stages of
``device-map`` are the GPUs), nodes follow from the number and the kind of GPU, and nothing else
asks for the machine; what is refused is asked anew on each. A test holds it to ``resolve``.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.planner import refuse_idle
from vram_plan.estimator.resolve import complete
from vram_plan.estimator.search.likeness import stages_are_gpus
from vram_plan.estimator.search.refused import Refused
from vram_plan.estimator.search.space import Assignment, Space
from vram_plan.estimator.search.variant import varied
from vram_plan.profiles.gpus import GpuSpec
from vram_plan.profiles.nodes import NodeSpec, default_node

_DEFAULT_NODE = 8


class Complete:
    """Configurations of a space's recipes on its machines."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._by_count = stages_are_gpus(space)
        self._known: dict[Hashable, TrainConfig] = {}
        self._refused = Refused(space)
        self._nodes: dict[tuple[str, int], NodeSpec] = {}

    def config(self, place: int, recipe: Assignment, gpus: int, gpu: GpuSpec | None) -> TrainConfig:
        """The recipe at a place of the space on a machine.

        Raises:
            ValueError: nothing runs it; one line that names the option and the way out.
        """
        options = {**self._space.fixed, "gpus": gpus, "gpu": gpu, **recipe}
        key = (place, gpus if self._by_count else gpus == 1)
        if key not in self._known:
            self._known[key] = complete(self._space.model, options)
        whole = self._known[key]
        changes = self._machine(whole, recipe, gpus, gpu)
        said = self._refused.line(key, whole, changes, options)
        if said:
            raise ValueError(said)
        config = varied(whole, **changes)
        if config.training:
            refuse_idle(config)
        return config

    def on(
        self, config: TrainConfig, recipe: Assignment, gpus: int, gpu: GpuSpec | None
    ) -> TrainConfig:
        """A complete configuration on a machine that is alike, which is not refused there."""
        return varied(config, **self._machine(config, recipe, gpus, gpu))

    def _machine(
        self, config: TrainConfig, recipe: Assignment, gpus: int, gpu: GpuSpec | None
    ) -> dict[str, Any]:
        """The fields that name the machine."""
        fixed: Any = self._space.fixed
        node, per_node = fixed.get("node"), config.gpus_per_node
        if recipe.get("gpus_per_node", fixed.get("gpus_per_node")) is None:
            per_node = min(gpus, node.gpus if node else _DEFAULT_NODE)
        if node is None and gpu is not None:
            node = self._node(gpu, per_node)
        return {"gpus": gpus, "gpus_per_node": per_node, "gpu": gpu, "node": node}

    def _node(self, gpu: GpuSpec, per_node: int) -> NodeSpec:
        key = (gpu.name, per_node)
        if key not in self._nodes:
            self._nodes[key] = default_node(gpu, per_node)
        return self._nodes[key]
