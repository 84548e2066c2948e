"""The time of a step and its cost as plain values and as words, for every format."""

from __future__ import annotations

import re
from typing import Any

from vram_plan.estimator.planner import Plan

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def part_key(name: str) -> str:
    """The key of a part in JSON and CSV: ``communication_all_gather``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def step_document(plan: Plan) -> dict[str, Any] | None:
    """The step as plain values; None where it is not modelled."""
    step = plan.step if plan.config.gpu else None
    if step is None:
        return None
    return {
        "seconds": step.seconds,
        "tokens_per_second": step.tokens_per_second,
        "tokens_per_second_per_gpu": step.tokens_per_second_per_gpu,
        "mfu": step.mfu,
        "hfu": step.hfu,
        "parts": {part_key(name): seconds for name, seconds in step.parts.items()},
    }


def cost_document(plan: Plan) -> dict[str, Any] | None:
    """The cost as plain values; None without a GPU or a step time."""
    cost = plan.cost if plan.config.gpu else None
    if cost is None:
        return None
    even = cost.break_even
    return {
        "usd_per_hour": cost.usd_per_hour,
        "usd_per_million_tokens": cost.usd_per_million_tokens,
        "price_source": cost.price_source or None,
        "tokens": cost.tokens,
        "hours": cost.hours,
        "usd": cost.usd,
        "kwh": cost.kwh,
        "usd_power": cost.usd_power,
        "break_even": None
        if even is None
        else {
            "busy_hours": even.busy_hours,
            "months": even.months,
            "purchase_usd": even.purchase_usd,
            "source": even.source,
        },
        "notes": list(cost.notes),
    }


def transfer_documents(plan: Plan) -> list[dict[str, Any]]:
    """Everything that travels in a step, for ``--explain``; nothing without a step time."""
    if plan.config.gpu is None or plan.step is None:
        return []
    from vram_plan.estimator.speed.traffic import transfers

    return [
        {
            "name": one.name,
            "part": part_key(one.part),
            "bytes": one.bytes,
            "seconds": one.seconds,
            "count": one.count,
            "overlaps": one.overlaps,
            "window": one.window,
        }
        for one in transfers(plan.config)
    ]


def step_line(plan: Plan) -> str:
    """Seconds, tokens a second and utilization; empty without a step time."""
    step = plan.step if plan.config.gpu else None  # without one nothing of it is even imported
    if step is None:
        return ""
    fitted = "" if plan.fits[0].verdict != "does not fit" else ", if it fitted"
    per_gpu = f" ({step.tokens_per_second_per_gpu:,.0f} per GPU)" if step.gpus > 1 else ""
    return (
        f"{seconds_text(step.seconds)} per step, {step.tokens_per_second:,.0f} tokens/s{per_gpu}, "
        f"MFU {100 * step.mfu:.1f} %{fitted}"
    )


def cost_lines(plan: Plan) -> list[str]:
    """Rent, the whole run, and renting against buying; nothing where nothing is known."""
    cost = plan.cost if plan.config.gpu else None
    if cost is None:
        return []
    lines = []
    if cost.usd_per_hour is not None and cost.usd_per_million_tokens is not None:
        lines.append(
            f"rent {usd(cost.usd_per_hour)} an hour, {usd(cost.usd_per_million_tokens)} per "
            "million tokens"
        )
    if cost.hours is not None and cost.tokens is not None:
        parts = [f"{cost.tokens:,.0f} tokens: {seconds_text(cost.hours * _HOUR)}"]
        parts += [usd(cost.usd)] if cost.usd is not None else []
        parts += [f"{cost.kwh:,.1f} kWh"] if cost.kwh is not None else []
        parts += [f"power {usd(cost.usd_power)}"] if cost.usd_power is not None else []
        lines.append(", ".join(parts))
    even = cost.break_even
    if even is not None and even.busy_hours is None:
        lines.append("renting stays cheaper: power alone costs more than the rent")
    elif even is not None and even.busy_hours is not None and even.months is not None:
        lines.append(
            f"buying at {usd(even.purchase_usd)} a GPU pays after {even.busy_hours:,.0f} busy "
            f"hours ({even.months:,.1f} months)"
        )
    return lines


def gap_lines(plan: Plan) -> list[str]:
    """Why there is no step time although a GPU was named."""
    if plan.config.gpu is None:
        return []
    from vram_plan.estimator.speed.gap import gap

    why = gap(plan)
    return [f"step time: {why}"] if why else []


def note_lines(plan: Plan) -> list[str]:
    """Why something is missing, where the price is from, and what the cost assumes."""
    lines, cost = gap_lines(plan), plan.cost if plan.config.gpu else None
    gpu = plan.config.gpu
    if gpu is not None and plan.config.gpus > 1 and "form factor unknown" in gpu.note:
        lines.append(f"{gpu.name}: {gpu.note}; name the card for its links")
    if cost is not None:
        lines += [f"price: {cost.price_source}"] if cost.price_source else []
        lines += [f"cost: {note}" for note in cost.notes]
    return lines


def seconds_text(seconds: float) -> str:
    """``12.3 ms``, ``0.63 s``, ``4.2 min``, ``3.1 h`` or ``12.4 days``."""
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.3g} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.3g} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.3g} h"
    return f"{seconds / _DAY:,.1f} days"


def usd(amount: float) -> str:
    """``$0.0042``, ``$1.25`` or ``$1,234``."""
    if amount and amount < 0.1:
        return f"${amount:.2g}"
    return f"${amount:,.2f}" if amount < 1000 else f"${amount:,.0f}"
