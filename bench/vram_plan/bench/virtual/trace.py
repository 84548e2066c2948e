"""The dry run of ``--zero``: which ranks to trace, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vram_plan.bench.virtual.case import ZeroCase, zero_case
from vram_plan.bench.virtual.launch import DEFAULT_TIMEOUT_SECONDS, launch
from vram_plan.bench.virtual.result import RankTrace, ZeroTrace
from vram_plan.estimator.config import TrainConfig

__all__ = ["trace_zero", "trace_zeros"]

Wanted = tuple[TrainConfig, Mapping[str, Any] | None]
"""A configuration and its model's fields."""

_ON_HOST = (
    "host and device are one memory on the CPU: copies between the two, which a GPU's rank makes "
    "of single gradients, are not seen"
)


def trace_zero(
    config: TrainConfig,
    raw: Mapping[str, Any] | None = None,
    *,
    history: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> ZeroTrace:
    """Run DeepSpeed's real engine as one rank of the job, on fake tensors.

    Fake tensors take no memory, so the model has its full width and depth: buckets and partitions
    fall differently in a shallower model, and no line through shallow ones would be exact.

    Args:
        config: a resolved configuration with ``zero``.
        raw: fields of the model's ``config.json``; looked up from the model's name where None.
        history: keep the events of the loading and of the first step too.
        timeout_seconds: after which the processes are ended.

    Raises:
        ValueError: what cannot be traced, and the way out.
        VirtualRankError: a process that failed, was killed or took too long.
    """
    found = trace_zeros([(config, raw)], history=history, timeout_seconds=timeout_seconds)[0]
    if isinstance(found, Exception):
        raise found
    return found


def trace_zeros(
    wanted: Sequence[Wanted],
    *,
    history: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> list[ZeroTrace | Exception]:
    """The same for many configurations, importing the libraries once; errors are returned."""
    cases = [_case(config, raw) for config, raw in wanted]
    ranks = [_ranks(case) if isinstance(case, ZeroCase) else () for case in cases]
    started = [
        replace(one, step=replace(one.step, history=history)) for wished in ranks for one in wished
    ]
    traces = iter(launch(started, timeout_seconds=timeout_seconds) if started else [])
    found: list[ZeroTrace | Exception] = []
    for (config, _), case, wished in zip(wanted, cases, ranks, strict=True):
        seen = [next(traces) for _ in wished]
        found.append(_together(config, case, seen) if isinstance(case, ZeroCase) else case)
    return found


def _case(config: TrainConfig, raw: Mapping[str, Any] | None) -> ZeroCase | ValueError:
    try:
        return zero_case(config, raw)
    except ValueError as refusal:
        return refusal


def _together(
    config: TrainConfig, case: ZeroCase, seen: Sequence[RankTrace | Exception]
) -> ZeroTrace | Exception:
    good = [one for one in seen if isinstance(one, RankTrace)]
    for one in seen:
        if isinstance(one, Exception):
            return one
    return ZeroTrace(
        ranks=case.ranks,
        seen=tuple(sorted(good, key=lambda one: -one.trace.peak_bytes)),
        local_ranks=min(config.gpus_per_node, case.ranks),
        notes=(_ON_HOST,) if case.offloads[0] else (),
    )


def _ranks(case: ZeroCase) -> tuple[ZeroCase, ...]:
    """The ranks that may be the fullest.

    Stage 1 reduces the first ranks' gradients while all others are still there, stage 2 the last
    ranks' while most activations are; the largest partition may be another one. Ranks of stages 0
    and 3 hold the same.
    """
    if case.ranks == 1 or case.stage in {0, 3}:
        return (replace(case, rank=0),)
    ends = (0, 1) if case.stage == 1 else (case.ranks - 1, case.ranks - 2)
    found = tuple(replace(case, rank=rank) for rank in ends)
    if case.ranks == len(ends):
        return found
    return (*found, replace(case, rank=None, besides=ends))
