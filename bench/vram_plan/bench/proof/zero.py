"""DeepSpeed's places: many virtual ranks in one go, since each start imports the libraries."""

from __future__ import annotations

from collections.abc import Sequence

from vram_plan.bench.proof.case import (
    Result,
    configured,
    paired,
    peak_of,
    result,
    traced_as,
)
from vram_plan.bench.proof.sample import ATTEMPTS, Candidate, Slot, draw
from vram_plan.bench.virtual import ZeroTrace, trace_zeros
from vram_plan.bench.virtual.case import zero_case
from vram_plan.estimator.config import TrainConfig

__all__ = ["run_zero"]

_TIMEOUT_SECONDS = 600.0


def run_zero(slots: Sequence[Slot]) -> list[Result]:
    """Draw for every place until a configuration runs."""
    waiting = dict.fromkeys(slots, 0)
    refusals: dict[Slot, list[str]] = {slot: [] for slot in slots}
    done: dict[Slot, Result] = {}
    while waiting:
        tried = {}
        for slot, attempt in list(waiting.items()):
            found = _next(slot, attempt, refusals[slot])
            if found is None:
                del waiting[slot]
                said = refusals[slot]
                done[slot] = result(slot, "refused", message=said[-1], refusals=said)
            else:
                waiting[slot], tried[slot] = found[0] + 1, found[1:]
        for slot, outcome in _traced(tried, refusals).items():
            del waiting[slot]
            done[slot] = outcome
    return [done[slot] for slot in slots]


def _next(
    slot: Slot, attempt: int, refusals: list[str]
) -> tuple[int, Candidate, TrainConfig] | None:
    """The next draw that neither the plan nor the tracer refuses at once; None after the last."""
    for number in range(attempt, ATTEMPTS):
        candidate = draw(slot, number)
        try:
            config = configured(candidate)
            zero_case(config, candidate.model)
        except ValueError as refusal:
            refusals.append(f"{candidate.model['model_type']}: {refusal}")
            continue
        return number, candidate, config
    return None


def _traced(
    tried: dict[Slot, tuple[Candidate, TrainConfig]], refusals: dict[Slot, list[str]]
) -> dict[Slot, Result]:
    """Results of those that ran or failed; a refusal is noted and left to the next draw."""
    wanted = [(config, candidate.model) for candidate, config in tried.values()]
    seen = trace_zeros(wanted, timeout_seconds=_TIMEOUT_SECONDS) if wanted else []
    done = {}
    for (slot, (candidate, config)), trace in zip(tried.items(), seen, strict=True):
        if isinstance(trace, ValueError):
            refusals[slot].append(f"{candidate.model['model_type']}: {trace}")
        elif isinstance(trace, ZeroTrace):
            found = paired(config, peak_of(trace))
            found |= {"model": candidate.model, "options": candidate.options}
            found |= {"seconds": trace.seconds["trace"]}
            found |= {"traced_as": traced_as(config, candidate.model)}
            done[slot] = result(slot, "ok", refusals=refusals[slot], **found)
        else:
            done[slot] = result(slot, "error", message=f"{type(trace).__name__}: {trace}")
    return done
