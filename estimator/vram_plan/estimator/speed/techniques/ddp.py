"""DDP: gradients are all-reduced bucket by bucket while the backward pass still runs.

Buckets of 25 MiB fill in the order in which gradients arrive, the first one after 1 MiB (torch
2.13.0 ``torch/nn/parallel/distributed.py`` ``bucket_cap_mb``, ``_DEFAULT_FIRST_BUCKET_BYTES``;
``torch/csrc/distributed/c10d/reducer.cpp`` ``compute_bucket_assignment_by_size``). With
accumulation only the last micro-batch reduces (``no_sync``, which Accelerate's ``accumulate`` and
the Trainer use). Nothing is left to hide the last bucket behind.

Every gradient is copied into its bucket and, summed up, out of it again
(``torch/csrc/distributed/c10d/reducer.cpp`` ``mark_variable_ready_dense``,
``finalize_bucket_dense``; ``gradient_as_bucket_view`` is off): each copy reads and writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from vram_plan.estimator.config import TrainConfig
from vram_plan.estimator.speed.payload import (
    collective,
    data_group,
    fullest_rank,
    sizes_in_order,
)
from vram_plan.estimator.speed.transfer import Transfer

COPIED = "communication: copies"
"""The part of the step in which nothing travels: the card's own bandwidth counts."""
_COPIES, _READ_AND_WRITTEN = 2, 2
BUCKET_BYTES = 25 * 2**20
FIRST_BUCKET_BYTES = 2**20


def transfers(config: TrainConfig) -> tuple[Transfer, ...]:
    """The gradients' all-reduce."""
    group = data_group(config)
    if group.ranks == 1:
        return ()
    order = [numel * param.itemsize for param, numel in sizes_in_order(fullest_rank(config))]
    reduced = hidden_reduction(config, list(buckets(reversed(order))), "all-reduce")
    return (*reduced, _copies(config, sum(order)))


def _copies(config: TrainConfig, nbytes: float) -> Transfer:
    """Gradients in and out of the buckets, on the stream that computes."""
    rate = config.gpu.memory_bandwidth_bytes_per_s if config.gpu else float("inf")
    seconds = _COPIES * _READ_AND_WRITTEN * nbytes / rate
    return Transfer(name="copies in and out of buckets", part=COPIED, bytes=0, seconds=seconds)


def hidden_reduction(
    config: TrainConfig, sizes: Sequence[float], kind: str, *, times: int = 1
) -> tuple[Transfer, ...]:
    """Reductions behind the backward pass, and the last one, behind which nothing runs."""
    group = data_group(config)
    if not sizes:
        return ()
    pieces = [(size, count * times) for size, count in Counter(sizes[:-1]).items()]
    window = times / config.grad_accum
    name = f"gradient {kind}"
    hidden = collective(name, kind, pieces, group, overlaps="backward", window=window)
    last = collective(f"{name} (last bucket)", kind, [(sizes[-1], times)], group)
    return (hidden, last) if pieces else (last,)


def buckets(sizes: Iterable[float]) -> Iterable[float]:
    """Bytes of each bucket; one is full as soon as it holds its limit."""
    limit, held = FIRST_BUCKET_BYTES, 0.0
    for size in sizes:
        held += size
        if held >= limit:
            yield held
            limit, held = BUCKET_BYTES, 0.0
    if held:
        yield held
