"""What FSDP2 holds while a unit's gradients are reduced, and behind that.

torch 2.13.0 ``torch/distributed/fsdp/_fully_shard``: ``_fsdp_collectives.py`` ``foreach_reduce``,
``_fsdp_param_group.py`` ``AllReduceState``.
"""

from __future__ import annotations

from collections.abc import Iterator

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.ledger import Entry
from vram_plan.estimator.sharding.units import Unit, held_bytes, padded, rounded
from vram_plan.estimator.tape import Param

COLLECTIVES = "torch 2.13.0 torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"


def reduce_input(unit: Unit, ranks: int, whose: str) -> Entry:
    """One buffer of a unit's gradients."""
    nbytes = unit.total(lambda p: padded(p, ranks) * p.itemsize, trainable=True)
    return Entry(
        component="buffers",
        name=f"reduce-scatter input {whose}",
        bytes=rounded(nbytes),
        formula=f"its gradients, padded: {nbytes:,} bytes",
        source=COLLECTIVES,
    )


def reduced(config: TrainConfig, unit: Unit, ranks: int, whose: str) -> Iterator[Entry]:
    """What `foreach_reduce` holds when the shards' gradients are there.

    Its loop's variable names the last weight's gradient until it returns; and what the collective
    wrote is there still, where that is cast to the dtype of the shards.
    """
    learning = [p for p in unit.params if p.trainable]
    if not learning:
        return
    last = Unit(name=unit.name, params=(learning[-1],), scale=unit.scale)
    yield Entry(
        component="gradients",
        name=f"whole gradient of {learning[-1].name}",
        bytes=rounded(last.total(lambda p: p.numel * p.itemsize)),
        formula="the last of the weights that are reduced together",
        source=COLLECTIVES,
    )
    nbytes = _output_bytes(config, unit, ranks)
    yield Entry(
        component="buffers",
        name=f"reduce-scatter output {whose}",
        bytes=rounded(nbytes),
        formula=f"a rank's share in the dtype of the collective: {nbytes:,} bytes",
        source=COLLECTIVES,
    )


def stays_reduced(config: TrainConfig, unit: Unit, ranks: int) -> int:
    """Bytes of the shares that the nodes have summed, until the backward pass is over.

    Hybrid sharding alone: a group keeps what it gave to the second collective, in that one's
    dtype, so that no other group's gradients are written there (``AllReduceState``). Where the
    shards have that dtype too, their gradients are views of it.
    """
    twice = config.fsdp == "hybrid-shard" and ranks < config.shard_ranks
    return rounded(_output_bytes(config, unit, ranks)) if twice else 0


def _output_bytes(config: TrainConfig, unit: Unit, ranks: int) -> int:
    def output(p: Param) -> float:
        adds = config.grad_accum > 1
        stays = held_bytes(config, p) == p.itemsize and not adds
        return 0 if stays else padded(p, ranks) // ranks * p.itemsize

    return unit.total(output, trainable=True)
