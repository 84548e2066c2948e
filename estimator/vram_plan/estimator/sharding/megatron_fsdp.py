"""Megatron-FSDP: everything in shards, whole blocks for as long as they run.

``--use-megatron-fsdp`` (Megatron-LM @ d98e8a64 ``megatron/core/distributed/fsdp/src/
megatron_fsdp``): ``--fsdp full-shard`` is its ``--data-parallel-sharding-strategy
optim_grads_params``, ``grad-op`` its ``optim_grads``. A rank holds its part of the compute weights,
of fp32 main weights (``--megatron-fsdp-main-params-dtype``), of main gradients in the compute dtype
(``--megatron-fsdp-main-grads-dtype auto``) and of the moments. A transformer layer is a unit; it is
gathered beside as many more as make half of the communication unit, the larger of 10⁹ elements and
two layers, and gradients wait until their queue holds more than that (``megatron_fsdp.py``,
``param_and_grad_buffer.py`` ``AllGatherPipeline``, ``GradReducePipeline``). What is outside the
layers is taken as whole for the passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vram_plan.estimator.choices import BYTES
from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.fp8 import casting
from vram_plan.estimator.inventory import Weight
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.base import Rank, clipping_entry
from vram_plan.estimator.step import (
    BACKWARD_FIRST,
    BACKWARD_LAST,
    EMBEDDING_BACKWARD,
    FORWARD,
    PASSES,
)

__all__ = ["fsdp_entries"]

SOURCE = "Megatron-LM megatron/core/distributed/fsdp/src/megatron_fsdp/param_and_grad_buffer.py"
UNIT_SOURCE = "Megatron-LM megatron/core/distributed/fsdp/src/megatron_fsdp/megatron_fsdp.py"
COMMUNICATED = 1_000_000_000
"""Least elements of the communication unit."""
_FP32 = 4
_MOMENTS = {"adamw": 2, "adamw-fused": 2, "sgd-momentum": 1, "sgd": 0}
_BLOCKS = frozenset({FORWARD, BACKWARD_LAST, BACKWARD_FIRST})
_WAITING = frozenset({BACKWARD_FIRST, EMBEDDING_BACKWARD})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """Elements and bytes of blocks, and of what is outside them."""

    count: int
    elements: float
    nbytes: float
    outside: float

    @property
    def capacity(self) -> float:
        """Elements of the communication unit."""
        return max(COMMUNICATED, 2 * self.elements)

    @property
    def gathered(self) -> int:
        """Blocks that are whole at once: the one that runs and those gathered ahead."""
        ahead = -(-(self.capacity // 2) // self.elements) if self.elements else 0
        return int(min(self.count, 1 + ahead))


def fsdp_entries(rank: Rank) -> list[Entry]:
    """Shards, and what is whole while the passes run."""
    config = rank.config
    units = _units(rank)
    return [*_shards(rank), *_whole(config, units), clipping_entry(rank)]


def _numel(weights: Iterable[Weight]) -> float:
    return sum(w.numel * w.count for w in weights)


def _units(rank: Rank) -> _Units:
    inventory = rank.passes.inventory
    layered = [w for w in inventory.weights if w.layered]
    rest = [w for w in inventory.weights if not w.layered]
    count = sum(link.count for link in rank.passes.links if link.segment.kind == "layer")
    scale = inventory.scale / max(count, 1)
    return _Units(
        count=count,
        elements=_numel(layered) * scale,
        nbytes=sum(w.numel * w.itemsize * w.count for w in layered) * scale,
        outside=sum(w.numel * w.itemsize * w.count for w in rest) * inventory.scale,
    )


def _shards(rank: Rank) -> list[Entry]:
    config, inventory = rank.config, rank.passes.inventory
    ranks = config.shard_ranks
    whole = config.fsdp == "grad-op"
    held = sum(w.numel * w.itemsize * w.count for w in inventory.weights) * inventory.scale
    learning = _numel(inventory.select(trainable=True)) * inventory.scale
    moments = _MOMENTS.get(config.optimizer, 2) * BYTES[config.state_dtype]
    own = -(-learning // ranks)
    parts = (
        ("weights", "shards of the weights", held if whole else -(-held // ranks)),
        ("gradients", "shards of the main gradients", config.compute_bytes * own),
        ("master_weights", "shards of fp32 main weights", _FP32 * own),
        ("optimizer_states", "optimizer states", moments * own),
    )
    return [
        Entry(
            component=component,
            name=name,
            bytes=round(nbytes),
            formula=f"{learning:,.0f} parameters over {ranks} ranks",
            source=SOURCE,
            state=True,
        )
        for component, name, nbytes in parts
    ]


def _whole(config: TrainConfig, units: _Units) -> list[Entry]:
    eight = casting(config)
    turned = units.elements if eight is not None and eight.transposes else 0.0
    waiting = min(units.capacity + units.elements, units.count * units.elements)
    found = [
        Entry(
            component="buffers",
            name="gradients on their way into shards",
            bytes=round(waiting * config.compute_bytes),
            formula=f"{waiting:,.0f} elements · {config.compute_bytes} bytes",
            source=UNIT_SOURCE,
            alive=_WAITING,
        )
    ]
    if config.fsdp == "grad-op":
        return found
    found.append(
        Entry(
            component="buffers",
            name="gathered weights outside the blocks",
            bytes=round(units.outside),
            formula="embedding, head and last norm",
            source=SOURCE,
            alive=frozenset(PASSES),
        )
    )
    found.append(
        Entry(
            component="buffers",
            name="gathered blocks",
            bytes=round(units.gathered * units.nbytes + turned),
            formula=f"{units.gathered} blocks of {units.elements:,.0f} elements",
            source=UNIT_SOURCE,
            alive=_BLOCKS,
        )
    )
    return found
