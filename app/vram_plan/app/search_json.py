"""A search as JSON: schema ``vram-plan/search/1`` (``schemas/search.json``)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from vram_plan.app.search_options import command_line
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.wish import MILLION, Candidate, Found, Wish
from vram_plan.estimator.speed.cost import cost_at
from vram_plan.profiles.gpus import GpuSpec

SCHEMA = "vram-plan/search/1"


def show(space: Space, wish: Wish, found: Found) -> None:
    """Print the document."""
    click.echo(json.dumps(to_document(space, wish, found), indent=2, ensure_ascii=False))


def to_document(space: Space, wish: Wish, found: Found) -> dict[str, Any]:
    """The search as plain values; what is not modelled is None, never 0."""
    batches = space.micro_batches
    return {
        "schema": SCHEMA,
        "model": {"name": space.model.name, "source": space.model.source},
        "objective": wish.objective,
        "constraints": {
            "global_batch": wish.global_batch,
            "max_usd_per_hour": wish.max_usd_per_hour,
            "deadline_seconds": wish.deadline_seconds,
            **asdict(wish.workload),
        },
        "space": {
            "raw_configurations": found.raw,
            "ranges": {name: [plain(v) for v in values] for name, values in space.ranges.items()},
            "micro_batch": "auto" if batches is None else list(batches),
        },
        "complete": found.complete,
        "plans": [plan_document(space, wish, plan) for plan in found.plans],
        "pareto": [plan_document(space, wish, plan) for plan in found.front],
        "fitting": found.fitting,
        "ruled_out": {one.reason: one.count for one in found.ruled_out},
        "nearest_misses": {
            one.reason: {"missing_bytes": one.nearest_bytes, "example": one.example}
            for one in found.ruled_out
            if one.nearest_bytes is not None
        },
    }


def plan_document(space: Space, wish: Wish, plan: Candidate) -> dict[str, Any]:
    """One plan with its figures."""
    each, usd = plan.seconds_per_token, plan.usd_per_token
    run = wish.tokens(plan.config)
    cost = None if each is None else cost_at(plan.config, 1 / each, wish.workload)
    bought = cost.break_even if cost else None
    return {
        "config": plan.config.options(),
        "required_bytes": plan.required_bytes,
        "usable_bytes": plan.usable_bytes,
        "headroom_bytes": plan.headroom_bytes,
        "tokens_per_second": plan.tokens_per_second,
        "usd_per_hour": plan.usd_per_hour,
        "usd_per_million_tokens": None if usd is None else usd * MILLION,
        "hours": None if each is None or run is None else each * run / 3600,
        "usd": None if usd is None or run is None else usd * run,
        "kwh": cost.kwh if cost else None,
        "usd_power": cost.usd_power if cost else None,
        "break_even_months": bought.months if bought else None,
        "price_source": cost.price_source if cost else "",
        "command": command_line(space, plan),
        "ties": [_tie(space, plan, other) for other in plan.ties],
    }


def _tie(space: Space, plan: Candidate, other: Candidate) -> dict[str, Any]:
    """A plan that comes to the same: the options in which it differs, and what it needs."""
    mine, its = space.at(plan.order), space.at(other.order)
    return {
        "options": {name: plain(its[name]) for name in its if its[name] != mine[name]},
        "micro_batch": other.config.micro_batch,
        "required_bytes": other.required_bytes,
        "command": command_line(space, other),
    }


def plain(value: object) -> object:
    """A value of a range as JSON has it."""
    return value.name if isinstance(value, GpuSpec) else value
