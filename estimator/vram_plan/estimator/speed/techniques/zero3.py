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
from dataclasses import dataclass, field
from functools import lru_cache

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.sharding.zero_bucket import reductions
from vram_plan.estimator.sharding.zero_calls import Course, module_calls
from vram_plan.estimator.sharding.zero_gather import Call, Gathering, Limits
from vram_plan.estimator.sharding.zero_layout import Layout
from vram_plan.estimator.sharding.zero_parts import Shares
from vram_plan.estimator.speed.payload import collective, data_group
from vram_plan.estimator.speed.techniques.ddp import hidden_reduction
from vram_plan.estimator.speed.transfer import Transfer

HOOK_SECONDS = 0.107 / 176
"""Host time for a module that begins: that model has seven modules with weights a layer and four
more, each beginning once forward and once backward; 12 ms of the step are the GPU's."""
Gathers = dict[str, tuple[tuple[float, int], ...]]
"""Pass → (bytes, how many) of its all-gathers."""


@dataclass(slots=True)
class _Counted(Gathering):
    """Notes every all-gather."""

    log: dict[str, list[int]] = field(default_factory=lambda: {"forward": [], "backward": []})

    def _gather(self, weights: list[int], call: Call) -> None:
        if weights:
            self.log[call.where[0]].append(sum(self.nbytes[w] for w in weights))
        Gathering._gather(self, weights, call)


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
    begun = _begun(shares.layout, checkpointed=config.checkpointing in {"full", "offload"})
    return [
        Transfer(
            name=f"hooks around every module ({phase})",
            part="host work of ZeRO-3",
            bytes=0,
            seconds=HOOK_SECONDS * count * config.grad_accum,
            overlaps=phase,
            count=count * config.grad_accum,
        )
        for phase, count in begun
    ]


@lru_cache(maxsize=256)
def _begun(layout: Layout, *, checkpointed: bool) -> tuple[tuple[str, int], ...]:
    """Modules that begin in each pass; those of recomputation count to the backward pass."""
    calls = Counter(
        call.where[0]
        for call in module_calls(layout, Course(checkpointed=checkpointed))
        if call.opens
    )
    return tuple((phase, calls[phase]) for phase in ("forward", "backward"))


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
    config = shares.config
    return _follow(
        shares.layout,
        _limits(config),
        config.zero_sizes.stage3_param_persistence_threshold,
        checkpointed=config.checkpointing in {"full", "offload"},
    )


def _limits(config: TrainConfig) -> Limits:
    sizes = config.zero_sizes
    return Limits(
        prefetch=sizes.stage3_prefetch_bucket_size,
        live=sizes.stage3_max_live_parameters,
        reuse=sizes.stage3_max_reuse_distance,
    )


@lru_cache(maxsize=256)
def _follow(layout: Layout, limits: Limits, resident: int, *, checkpointed: bool) -> Gathers:
    pieces = layout.pieces
    counted = _Counted(
        numels=[piece.numel for piece in pieces],
        nbytes=[round(piece.numel * piece.itemsize) for piece in pieces],
        resident=frozenset(n for n, piece in enumerate(pieces) if piece.numel <= resident),
        limits=limits,
        calls=list(module_calls(layout, Course(checkpointed=checkpointed))),
    )
    counted.run()
    log = {
        phase: Counter(float(nbytes) for nbytes in found) for phase, found in counted.log.items()
    }
    return {phase: tuple(found.items()) for phase, found in log.items()}


def gathered_bytes(shares: Shares) -> dict[str, float]:
    """Pass → bytes of all its all-gathers of one micro-batch."""
    return {
        phase: sum(nbytes * count for nbytes, count in found)
        for phase, found in gathered(shares).items()
    }
