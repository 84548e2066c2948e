"""What every format says of a search, in words and rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vram_plan.app.search_options import spelled
from vram_plan.app.search_ties import NEARLY, also
from vram_plan.app.units import gib, signed_gib
from vram_plan.estimator.refusals import option
from vram_plan.estimator.search.space import Space
from vram_plan.estimator.search.speed import parts_per_token
from vram_plan.estimator.search.tally import MISSES, REFUSED, Out
from vram_plan.estimator.search.ties import TOLERANCE
from vram_plan.estimator.search.trial import Trial
from vram_plan.estimator.search.why import Alternative, alternatives
from vram_plan.estimator.search.wish import MILLION, Candidate, Found, Wish
from vram_plan.estimator.speed.cost import Workload
from vram_plan.profiles.gpus import GpuSpec

_MOST_REASONS = 12
_MOST_FRONT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table: heads, rows of text, and which columns are words (left-aligned)."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str] = frozenset()


def headline(space: Space, wish: Wish, found: Found) -> str:
    """What was searched, in one line."""
    stopped = "" if found.complete else " · stopped before the end"
    return (
        f"{space.model.name} · {found.raw:,} configurations · best {wish.objective}"
        f"{_constraints(wish)}{stopped}"
    )


def _constraints(wish: Wish) -> str:
    parts = []
    if wish.global_batch is not None:
        parts.append(f"global batch {wish.global_batch:,}")
    if wish.max_usd_per_hour is not None:
        parts.append(f"at most ${wish.max_usd_per_hour:,.2f} an hour")
    if wish.deadline_seconds is not None:
        parts.append(f"{_amount(wish.workload)} within {_duration(wish.deadline_seconds)}")
    return "".join(f" · {part}" for part in parts)


def _amount(workload: Workload) -> str:
    times = "" if workload.epochs == 1 else f" × {workload.epochs:g} epochs"
    if workload.samples is not None:
        return f"{workload.samples:,.0f} samples{times}"
    return f"{workload.tokens or 0:,.0f} tokens{times}"


def space_lines(space: Space, wish: Wish) -> list[str]:
    """The ranges, as they were understood."""
    parts = [f"{option(name)} {_values(values)}" for name, values in space.ranges.items()]
    batch = "auto" if space.micro_batches is None else _values(space.micro_batches)
    parts.append(f"--micro-batch {batch}")
    fixed = [spelled(name, value) for name, value in space.fixed.items() if value is not None]
    return [f"searched: {', '.join(parts)}"] + ([f"fixed: {', '.join(fixed)}"] if fixed else [])


def _values(values: tuple[object, ...]) -> str:
    words = [one.name if isinstance(one, GpuSpec) else str(one) for one in values]
    words = ["none" if word == "None" else word for word in words]
    if len(words) <= 6:
        return "|".join(words)
    return f"{words[0]}|{words[1]}|…|{words[-1]} ({len(words)})"


def plans_grid(space: Space, wish: Wish, found: Found) -> Grid:
    """The best plans, best first."""
    nothing = "no configuration meets every constraint"
    if not found.complete:
        nothing = "no plan was found before the search was stopped"
    title = "best plans" if found.plans else nothing
    return _grid(title, space, wish, found.plans)


def front_grid(space: Space, wish: Wish, found: Found) -> Grid:
    """The Pareto front, thinned where it is long."""
    plans = found.front
    title = "cost × time: no other plan is both faster and cheaper"
    if len(plans) > _MOST_FRONT:
        step = (len(plans) - 1) / (_MOST_FRONT - 1)
        plans = tuple(plans[round(i * step)] for i in range(_MOST_FRONT))
        title += f" ({_MOST_FRONT} of {len(found.front)})"
    return _grid(title, space, wish, plans)


def _grid(title: str, space: Space, wish: Wish, plans: tuple[Candidate, ...]) -> Grid:
    timed = any(plan.seconds_per_token is not None for plan in plans)
    heads = ["", "GPUs", "plan", "batch", "required", "free"]
    if timed:
        heads += ["tokens/s", "$/hour", "$/M tokens"]
        heads += ["time", "cost"] if wish.sets_amount else []
    rows = []
    shared = _shared(space, plans)
    if shared:
        title += f"; all with {_words(space, plans[0], shared)}"
    names = [name for name in _recipe_names(space) if name not in shared]
    if not names and shared:
        heads.remove("plan")
    for number, plan in enumerate(plans, 1):
        row = [str(number), machine(plan)]
        row += [recipe(space, plan, names)] if "plan" in heads else []
        row.append(batch(plan))
        row += [gib(plan.required_bytes, 1), _free(plan)]
        rows.append((*row, *(_figures(wish, plan) if timed else ())))
    return Grid(
        title=title, heads=tuple(heads), rows=tuple(rows), words=frozenset({"GPUs", "plan"})
    )


def machine(plan: Candidate) -> str:
    """``8 × a100-80gb-sxm``."""
    config = plan.config
    return f"{config.gpus} × {config.gpu.name}" if config.gpu else str(config.gpus)


def recipe(space: Space, plan: Candidate, names: list[str] | None = None) -> str:
    """The options that were searched, or some, without the machine and the batch."""
    names = _recipe_names(space) if names is None else names
    return _words(space, plan, names) if names else plan.config.engine


def _recipe_names(space: Space) -> list[str]:
    return [name for name in space.ranges if name not in {"gpus", "gpu"}]


def _shared(space: Space, plans: tuple[Candidate, ...]) -> list[str]:
    """Searched options that have one value in all of several plans."""
    chosen = [space.at(plan.order) for plan in plans]
    if len(chosen) < 2:
        return []
    return [name for name in _recipe_names(space) if len({at[name] for at in chosen}) == 1]


def _words(space: Space, plan: Candidate, names: list[str]) -> str:
    at = space.at(plan.order)
    return ", ".join(
        f"{name.replace('_', '-')} {'none' if at[name] is None else at[name]}" for name in names
    )


def batch(plan: Candidate) -> str:
    """``4`` or ``4 × 8`` with accumulation."""
    config = plan.config
    times = f" × {config.grad_accum}" if config.grad_accum > 1 else ""
    return f"{config.micro_batch}{times}"


def _free(plan: Candidate) -> str:
    return "" if plan.headroom_bytes is None else gib(plan.headroom_bytes, 1)


def _figures(wish: Wish, plan: Candidate) -> tuple[str, ...]:
    rate, usd = plan.tokens_per_second, plan.usd_per_token
    cells = [
        "—" if rate is None else f"{rate:,.0f}",
        "—" if plan.usd_per_hour is None else f"{plan.usd_per_hour:,.2f}",
        "—" if usd is None else f"{usd * MILLION:,.3f}",
    ]
    tokens, each = wish.tokens(plan.config), plan.seconds_per_token
    if tokens is not None:
        cells.append("—" if each is None else _duration(each * tokens))
        cells.append("—" if usd is None else f"${usd * tokens:,.2f}")
    return tuple(cells)


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def reasons(space: Space, wish: Wish, found: Found) -> Iterator[str]:
    """Why the first plan wins: what each other choice makes of it; then what the others lack."""
    best = found.plans[0]
    trial, mine = Trial(space, wish), space.at(best.order)
    yield f"1. {_named(space, wish, best)}; with another choice:"
    for name in space.ranges:
        told = [_told(wish, best, one) for one in alternatives(trial, best, name)]
        if told:
            yield f"   {spelled(name, mine[name])} → " + ", ".join(told)
    for number, plan in enumerate(found.plans[1:], 2):
        changed = _differs(space, best, plan) + also(space, wish, plan)
        yield f"{number}. {_behind(wish, best, plan)}{_because(wish, best, plan)}: {changed}"


def _named(space: Space, wish: Wish, plan: Candidate) -> str:
    return f"{machine(plan)}, {recipe(space, plan)}{also(space, wish, plan)}"


def _told(wish: Wish, best: Candidate, other: Alternative) -> str:
    value = other.value.name if isinstance(other.value, GpuSpec) else other.value
    word = "none" if value is None else value
    if isinstance(other.outcome, Out):
        return f"{word}: {out_words(other.outcome)}"
    return f"{word}: {_behind(wish, best, other.outcome)}"


def out_words(out: Out) -> str:
    """Why something is out, in a few words."""
    if out.reason == MISSES:
        return f"misses by {gib(out.missing or 0)}"
    return "refused" if out.reason.startswith(REFUSED) else out.reason


def _behind(wish: Wish, best: Candidate, other: Candidate) -> str:
    mine, its = best.worth(wish.objective), other.worth(wish.objective)
    if its == mine:
        return "equal"
    if wish.objective == "memory":
        return signed_gib(its - mine)
    if its == float("inf"):
        return f"has no known {wish.objective}"
    if abs(its - mine) <= TOLERANCE * mine:
        return f"equal {NEARLY}"
    if wish.objective == "throughput":
        return f"{100 * (mine / its - 1):+.1f} % tokens/s".replace("-", "−")
    return f"{100 * (its / mine - 1):+.1f} % {wish.objective}"


def _because(wish: Wish, best: Candidate, other: Candidate) -> str:
    """The part of the step that a plan spends most more on than the first, per token."""
    if not wish.wants_front:
        return ""
    mine, its = parts_per_token(best.config), parts_per_token(other.config)
    more = {name: seconds - mine.get(name, 0.0) for name, seconds in its.items()}
    name = max(more, key=lambda part: more[part], default="")
    total = sum(mine.values())
    if not name or more[name] < 0.001 * total:
        return ""
    return f" ({100 * more[name] / total:.1f} % of the first's step more in {name})"


def _differs(space: Space, best: Candidate, other: Candidate) -> str:
    mine, its = space.at(best.order), space.at(other.order)
    changed = [spelled(name, its[name]) for name in its if its[name] != mine[name]]
    return ", ".join([*changed, f"--micro-batch {batch(other)}"])


def ruled_out_grid(found: Found) -> Grid:
    """Counts by reason."""
    rows = []
    for one in found.ruled_out[:_MOST_REASONS]:
        nearest = "" if one.nearest_bytes is None else f"by {gib(one.nearest_bytes)} at least: "
        rows.append((f"{one.count:,}", one.reason, f"{nearest}{one.example}"))
    rest = found.ruled_out[_MOST_REASONS:]
    if rest:
        count = sum(one.count for one in rest)
        rows.append((f"{count:,}", f"{len(rest)} more reasons", "see --format json"))
    rows.append((f"{found.fitting:,}", "looked at and possible", ""))
    return Grid(
        title=f"ruled out, of {found.raw:,}",
        heads=("count", "reason", "nearest, or for example"),
        rows=tuple(rows),
        words=frozenset({"reason", "nearest, or for example"}),
    )
