"""A check's findings as text: a table, a pull request's comment, JUnit XML, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from vram_plan.app.units import gib
from vram_plan.reports.markup import plain

if TYPE_CHECKING:
    from vram_plan.bench.regression.check import Finding

__all__ = ["FORMATS", "MARKER", "render", "sentence"]

MARKER = "<!-- vram-plan bench check -->"
"""First line of the comment: a workflow finds its own by it and updates it in place."""
_ORDER = ("regression", "suspect", "improvement", "ok", "insufficient", "censored")
_QUIET = ("ok", "insufficient", "censored")
_CAUSES = {
    "code": "the code",
    "environment": "the environment",
    "machine": "the machine: every configuration moved together",
}


def sentence(findings: Sequence[Finding]) -> str:
    """The answer in one line."""
    bad = [one for one in findings if one.verdict.status == "regression"]
    if bad:
        return f"{len(bad)} of {len(findings)} figures got worse"
    judged = [one for one in findings if one.verdict.status not in ("insufficient", "censored")]
    if not judged:
        return "not enough runs to say anything: a series needs 10 runs before the new ones"
    waiting = sum(one.verdict.status == "suspect" for one in judged)
    rest = f"; {waiting} to be confirmed by running again" if waiting else ""
    return f"no regression in {len(judged)} figures{rest}"


def render(findings: Sequence[Finding], style: str) -> str:
    """The findings in one of ``FORMATS``, the worst first."""
    ordered = sorted(findings, key=lambda one: (_ORDER.index(one.verdict.status), one.series))
    return FORMATS[style](ordered)


def _table(findings: Sequence[Finding]) -> str:
    """The changed ones; the others are counted."""
    lines = [sentence(findings)]
    quiet = Counter(one.verdict.status for one in findings if one.verdict.status in _QUIET)
    for one in findings:
        if one.verdict.status in _QUIET:
            continue
        lines.append(f"{one.verdict.status:<12} {one.metric:<17} {_change(one):>9}  {one.series}")
        lines += [f"{'':<13}{text}" for text in _details(one)]
    lines += [f"{status:<12} {count} figures" for status, count in quiet.items()]
    return "\n".join(lines)


def _details(one: Finding) -> list[str]:
    verdict = one.verdict
    if verdict.change is None:
        return []
    before, now = verdict.runs
    compared = f"{_figure(one, verdict.baseline)} → {_figure(one, verdict.new)}"
    lines = [f"{compared} ({before} runs, {now} new{_interval(one)}; limit {_limit(one)})"]
    if one.cause:
        lines.append(f"because of {_CAUSES[one.cause]}{_list(one.differences)}")
    return lines


def _markdown(findings: Sequence[Finding]) -> str:
    changed = [one for one in findings if one.verdict.status not in _QUIET]
    lines = [MARKER, f"**vram-plan**: {sentence(findings)}", ""]
    if changed:
        lines += _markdown_rows(changed)
    environment = sorted({text for one in changed for text in one.differences})
    if environment:
        lines += ["", f"Environment: {plain('; '.join(environment))}"]
    lines += ["", f"<details><summary>All {len(findings)} figures</summary>", ""]
    lines += [*_markdown_rows(findings), "", "</details>"]
    return "\n".join(lines)


def _markdown_rows(findings: Sequence[Finding]) -> list[str]:
    lines = [
        "| | configuration | figure | before | now | change | interval | n | because of |",
        "|---|---|---|---:|---:|---:|---|---|---|",
    ]
    for one in findings:
        verdict = one.verdict
        cells = (
            verdict.status,
            one.series,
            one.metric,
            _figure(one, verdict.baseline),
            _figure(one, verdict.new),
            _change(one),
            _interval(one).removeprefix(", "),
            f"{verdict.runs[0]} + {verdict.runs[1]}",
            one.cause or "",
        )
        lines.append(f"| {' | '.join(map(plain, cells))} |")
    return lines


def _junit(findings: Sequence[Finding]) -> str:
    suite = ElementTree.Element("testsuite", name="vram-plan bench check")
    for one in findings:
        case = ElementTree.SubElement(suite, "testcase", classname=one.series, name=one.metric)
        status = one.verdict.status
        if status == "regression":
            failure = ElementTree.SubElement(case, "failure", message=_change(one))
            failure.text = "\n".join(_details(one))
        elif status in ("insufficient", "censored"):
            ElementTree.SubElement(case, "skipped", message=status)
    statuses = [one.verdict.status for one in findings]
    suite.set("tests", str(len(statuses)))
    suite.set("failures", str(statuses.count("regression")))
    suite.set("skipped", str(statuses.count("insufficient") + statuses.count("censored")))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def _json(findings: Sequence[Finding]) -> str:
    rows = [asdict(one) for one in findings]
    return json.dumps({"schema": "vram-plan/check/1", "findings": rows}, indent=2)


FORMATS = {"table": _table, "markdown": _markdown, "junit": _junit, "json": _json}


def _figure(one: Finding, value: float | None) -> str:
    if value is None:
        return "–"
    if one.metric == "step_seconds":
        return f"{value:.4g} s"
    return f"{value:.2%}" if one.metric == "prediction_error" else gib(value, 3)


def _change(one: Finding) -> str:
    change = one.verdict.change
    if change is None:
        return "–"
    points = one.metric == "prediction_error"
    return f"{100 * change:+.2f} points" if points else f"{change:+.2%}"


def _limit(one: Finding) -> str:
    limit = one.verdict.threshold or 0.0
    return f"{100 * limit:.0f} points" if one.metric == "prediction_error" else f"{limit:.1%}"


def _interval(one: Finding) -> str:
    found = one.verdict.interval
    return "" if found is None else f", {found[0]:+.1%} … {found[1]:+.1%}"


def _list(texts: Sequence[str]) -> str:
    return f": {', '.join(texts)}" if texts else ""
