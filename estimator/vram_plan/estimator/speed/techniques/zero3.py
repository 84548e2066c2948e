"""ZeRO-3: weights gathered for the forward and again for the backward pass, gradients scattered.

With nothing kept that is 3 Ψ a micro-batch against DDP's 2 Ψ (arXiv:1910.02054 section 7.2). What
DeepSpeed 0.19.8 sends is less: weights of at most ``stage3_param_persistence_threshold`` elements
are gathered once, after the update (``zero/parameter_offload.py``, ``zero/stage3.py``
``_post_step``), and those needed again within ``stage3_max_reuse_distance`` elements stay
(``zero/partitioned_param_coordinator.py``), followed here call by call. Gathers run ahead of the
modules and reductions beside the backward pass with ``overlap_comm``, stage 3's default.

Its hooks around every module keep the host busy (``zero/parameter_offload.py``): 254·10⁶ parameters
in twelve layers take 0.119 s a step on four H100 although the GPUs work for a tenth of that
(deepspeedai/DeepSpeedExamples @ 516082c6 ``training/bf16_master_weight/README.md``). Where the GPU
has enough to do the hooks hide behind it.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from vram_plan.estimator.sharding.zero3_gathered import followed
from vram_plan.estimator.sharding.zero_bucket import reductions
from vram_plan.estimator.sharding.zero_calls import Course
from vram_plan.estimator.sharding.zero_gather import Gathered
from vram_plan.estimator.sharding.zero_layout import Layout
from vram_plan.estimator.sharding.zero_parts import Shares
from vram_plan.estimator.simulate import RECOMPUTED
from vram_plan.estimator.speed.payload import collective, data_group
from vram_plan.estimator.speed.techniques.ddp import hidden_reduction
from vram_plan.estimator.speed.transfer import Transfer

HOOK_SECONDS = 0.107 / 176
"""Host time for a module that begins: that model has seven modules with weights a layer and four
more, each beginning once forward and once backward; 12 ms of the step are the GPU's."""
_PASSES = ("forward", "backward")
Gathers = dict[str, tuple[tuple[float, int], ...]]
"""Pass → (bytes, how many) of its all-gathers."""


def transfers(shares: Shares) -> tuple[Transfer, ...]:
    """All-gathers of both passes, reduce-scatters, and the small weights after the update."""
    config, group = shares.config, data_group(shares.config)
    sizes = config.zero_sizes
    found: list[Transfer] = []
    for phase, gathers in gathered(shares).items():
        pieces = [(nbytes, count * config.grad_accum) for nbytes, count in gathers]
        found.append(
            collective(
                f"all-gather of weights ({phase})",
                "all-gather",
                pieces,
                group,
                overlaps=phase if sizes.overlap_comm else None,
            )
        )
    found += _reductions(shares)
    found += _hooks(shares)
    whole = _small_bytes(shares.layout, sizes.stage3_param_persistence_threshold)
    if whole:
        found.append(collective("all-gather of small weights", "all-gather", [(whole, 1)], group))
    return tuple(found)


@lru_cache(maxsize=256)
def _small_bytes(layout: Layout, threshold: int) -> float:
    return float(sum(p.numel * p.itemsize for p in layout.pieces if p.numel <= threshold))


def _hooks(shares: Shares) -> list[Transfer]:
    config = shares.config
    begun = _followed(shares).begun
    return [
        Transfer(
            name=f"hooks around every module ({phase})",
            part="host work of ZeRO-3",
            bytes=0,
            seconds=HOOK_SECONDS * begun.get(phase, 0) * config.grad_accum,
            overlaps=phase,
            count=begun.get(phase, 0) * config.grad_accum,
        )
        for phase in _PASSES
    ]


def _reductions(shares: Shares) -> tuple[Transfer, ...]:
    config = shares.config
    bucket = config.zero_sizes.reduce_bucket_size
    found = bucket_bytes(shares.layout, shares.width, bucket)
    if config.zero_sizes.overlap_comm:
        return hidden_reduction(config, found, "reduce-scatter", times=config.grad_accum)
    pieces = [(size, count * config.grad_accum) for size, count in Counter(found).items()]
    return (collective("gradient reduce-scatter", "reduce-scatter", pieces, data_group(config)),)


@lru_cache(maxsize=256)
def bucket_bytes(layout: Layout, width: int, bucket: int) -> tuple[float, ...]:
    """Bytes of every reduction, in the order of the backward pass."""
    numels = [piece.numel for piece in reversed(layout.trained)]
    return tuple(float(r.elements * width) for r in reductions(numels, bucket))


def gathered(shares: Shares) -> Gathers:
    """Bytes of every all-gather of one micro-batch."""
    return _gathers(shares.layout, _followed(shares))


@lru_cache(maxsize=256)
def _gathers(layout: Layout, followed: Gathered) -> Gathers:
    sizes = [piece.numel * piece.itemsize for piece in layout.pieces]
    found: Gathers = {}
    for phase in _PASSES:
        each = (sum(sizes[n] for n in weights) for weights in followed.fetched.get(phase, ()))
        found[phase] = tuple(Counter(float(nbytes) for nbytes in each).items())
    return found


def _followed(shares: Shares) -> Gathered:
    return followed(shares, Course(checkpointed=shares.config.checkpointing in RECOMPUTED))


def gathered_bytes(shares: Shares) -> dict[str, float]:
    """Pass → bytes of all its all-gathers of one micro-batch."""
    return {
        phase: sum(nbytes * count for nbytes, count in found)
        for phase, found in gathered(shares).items()
    }
