"""What a report says, section by section, from the documents it is given."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vram_plan.reports.page import figures
from vram_plan.reports.page.frames import (
    components_frame,
    label_of,
    names_of,
    parts_frame,
    runs_frame,
)
from vram_plan.reports.page.timeline import is_sampled, timeline_frame

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Section", "Table", "sections", "sentence"]

_GIB = 2**30
_SHOWN = 8
"""Configurations whose components and parts are drawn: more bars are not read."""
_STRATA = ("method", "engine", "checkpointing", "gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, a word on what is seen, a figure, the same as a table.

    Attributes:
        title: of the section.
        text: how it is to be read.
        figure: drawn on the page; not in Markdown.
        table: the figure's data; what a reader without the figure needs.
        folded: the table is opened by the reader.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    table: Table | None = None
    folded: bool = True


Documents = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Given:
    documents: Documents
    runs: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", runs_frame(self.documents))


def sentence(documents: Documents) -> str:
    """The answer in one sentence."""
    runs = runs_frame(documents)
    errors = sorted(abs(runs["error"].dropna())) if len(runs) else []
    parts = [f"{len(runs)} runs and plans"]
    outcomes = runs["outcome"].value_counts() if len(runs) else {}
    parts += [f"{count} {name}" for name, count in outcomes.items() if name != "planned"]
    if not errors:
        return f"{', '.join(parts)}; nothing was measured beside a prediction."
    middle, worst = statistics.median(errors), errors[-1]
    return (
        f"{', '.join(parts)}: the predicted peak is off by {100 * middle:.2f} % in the median "
        f"and by {100 * worst:.2f} % at most ({len(errors)} compared)."
    )


def sections(documents: Documents) -> list[Section]:
    """Every section that the documents have something to say in."""
    given = _Given(documents)
    found = [make(given) for make in (_predicted, _components, _over_time, _parts, _pareto)]
    found += [_errors(given, stratum) for stratum in _STRATA]
    some = [section for section in (*found, _made_again(given)) if section is not None]
    common, _ = names_of(documents)
    if common and some:
        some[0] = replace(some[0], text=f"All: {common}. {some[0].text}")
    return some


def _predicted(given: _Given) -> Section | None:
    runs = given.runs
    if not len(runs) or not runs["predicted_bytes"].notna().any():
        return None
    rows = [
        (one.label, one.outcome, _gib(one.predicted_bytes), _gib(one.measured_bytes),
         _percent(one.error))
        for one in runs.itertuples()
    ]  # fmt: skip
    return Section(
        title="Predicted and measured memory",
        text="A point on the line was predicted exactly. Runs out of memory are hollow, drawn at "
        "the capacity of their device.",
        figure=figures.predicted_measured(runs),
        table=Table(
            head=("configuration", "outcome", "predicted", "measured", "error"), rows=tuple(rows)
        ),
    )


def _components(given: _Given) -> Section | None:
    some = _telling(given.documents)
    frame = components_frame(some)
    if not len(frame):
        return None
    rows = tuple(
        (one.label, one.side, one.component, _gib(one.bytes)) for one in frame.itertuples()
    )
    return Section(
        title="What fills the memory at the peak",
        text=_cut(len(some), len(given.documents)),
        figure=figures.components(frame),
        table=Table(head=("configuration", "side", "component", "bytes"), rows=rows),
    )


def _telling(documents: Documents) -> Documents:
    """The newest of every configuration, the largest first, at most as many as are drawn."""
    newest = {label_of(document): document for document in documents}
    return sorted(newest.values(), key=_size, reverse=True)[:_SHOWN]


def _size(document: Mapping[str, Any]) -> int:
    memory, plan = document.get("memory") or {}, document.get("plan") or {}
    return int(memory.get("allocated_bytes") or plan.get("allocated_bytes") or 0)


def _over_time(given: _Given) -> Section | None:
    timed = [one for one in given.documents if is_sampled(one)]
    if not timed:
        return None
    one = max(timed, key=_size)
    instants = (one.get("plan") or {}).get("instants") or {}
    frame = timeline_frame(one)
    rows = tuple(
        (str(source), f"{some['bytes'].max() / _GIB:.3f} GiB", str(len(some)))
        for source, some in frame.groupby("source", sort=False)
    )
    return Section(
        title="Memory over time",
        text=f"{label_of(one)}. Dotted lines are what the plan predicts the allocator to hold.",
        figure=figures.memory_over_time(frame, instants),
        table=Table(head=("counter", "highest", "points"), rows=rows),
    )


def _parts(given: _Given) -> Section | None:
    frame = parts_frame(_telling(given.documents))
    if not len(frame):
        return None
    rows = tuple((one.label, one.part, f"{one.seconds:.4g} s") for one in frame.itertuples())
    return Section(
        title="Where a step's time goes",
        text="Predicted.",
        figure=figures.step_parts(frame),
        table=Table(head=("configuration", "part", "seconds"), rows=rows),
    )


def _pareto(given: _Given) -> Section | None:
    runs = given.runs
    if not len(runs) or runs["tokens_per_second"].notna().sum() < 2:
        return None
    some = runs[runs["tokens_per_second"].notna()]
    rows = tuple(
        (one.label, _gib(one.measured_bytes), f"{one.tokens_per_second:,.0f}", _usd(one))
        for one in some.itertuples()
    )
    return Section(
        title="Throughput and memory",
        text="Runs on the line are the fastest for their memory.",
        figure=figures.pareto(runs),
        table=Table(
            head=("configuration", "measured", "tokens/s", "USD per million tokens"), rows=rows
        ),
    )


def _errors(given: _Given, stratum: str) -> Section | None:
    runs = given.runs
    if not len(runs) or runs["error"].notna().sum() < 2 or runs[stratum].nunique() < 2:
        return None
    rows = []
    for name, some in runs[runs["error"].notna()].groupby(stratum):
        off = abs(some["error"])
        rows.append((str(name), str(len(some)), _percent(off.median()), _percent(off.max())))
    return Section(
        title=f"Error by {stratum}",
        figure=figures.errors_by(runs, stratum),
        table=Table(head=(stratum, "n", "median", "max"), rows=tuple(rows)),
    )


def _made_again(given: _Given) -> Section | None:
    environments = {}
    for document in given.documents:
        seen = document.get("environment") or {}
        if seen:
            environments[_versions(seen)] = seen
    rows = [(name, "environment") for name in environments]
    rows += [(one.command, one.label) for one in given.runs.itertuples() if one.command]
    if not rows:
        return None
    return Section(
        title="Make it again",
        text="Versions, and the command that makes each run again.",
        table=Table(head=("command or versions", "of"), rows=tuple(rows)),
        folded=False,
    )


def _versions(environment: Mapping[str, Any]) -> str:
    libraries = environment.get("libraries") or {}
    facts = [f"vram-plan {environment.get('vram_plan')}", f"Python {environment.get('python')}"]
    return ", ".join([*facts, *(f"{name} {v}" for name, v in libraries.items() if v)])


def _cut(shown: int, of: int) -> str:
    return f"The {shown} largest of {of}." if shown < of else ""


def _gib(value: float | None) -> str:
    return f"{value / _GIB:.3f} GiB" if value is not None and value == value else "–"


def _percent(value: float | None) -> str:
    return f"{100 * value:+.2f} %" if value is not None and value == value else "–"


def _usd(one: Any) -> str:
    price = one.usd_per_million_tokens
    return f"{price:.3f}" if price is not None and price == price else "–"
