"""What a suite is expected to need, kept in a file: a library's upgrade shows before any GPU does.

A plan or a dry run has no noise: any growth is real, and the limit is there to be quiet about
what nobody would mind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vram_plan.bench.environment import environment
from vram_plan.bench.regression.rules import allocated_limit
from vram_plan.bench.regression.series import differences
from vram_plan.bench.runs.job import Job
from vram_plan.bench.runs.surroundings import surroundings_of
from vram_plan.bench.runs.sweep import title_of

__all__ = ["LEVELS", "SCHEMA", "Drift", "compare", "expected_of", "read_expected"]

SCHEMA = "vram-plan/expected/1"
LEVELS = ("plan", "dry-run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One configuration beside what was expected of it.

    Attributes:
        name: the configuration, for a person.
        level: ``plan`` or ``dry-run``.
        before: bytes of every instant as expected; None where nothing was.
        now: the same now.
        components: bytes by component at the peak, now less before.
        differences: of the environment, in words.
        failure: why there is no figure.
    """

    name: str
    level: str
    before: Mapping[str, int] | None
    now: Mapping[str, int] | None
    components: Mapping[str, int]
    differences: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def change_bytes(self) -> int | None:
        """Of the peak."""
        if not self.before or not self.now:
            return None
        return max(self.now.values()) - max(self.before.values())

    @property
    def status(self) -> str:
        """``ok``, ``regression``, ``improvement``, ``insufficient`` or ``error``."""
        if self.failure is not None:
            return "error"
        change = self.change_bytes
        if change is None or self.before is None:
            return "insufficient"
        limit = allocated_limit(max(self.before.values()))
        return "regression" if change > limit else "improvement" if change < -limit else "ok"

    @property
    def instant(self) -> str:
        """Where the peak is now."""
        now = self.now or {"": 0}
        return max(now, key=lambda name: now[name])


def expected_of(jobs: Iterable[Job], level: str) -> dict[str, Any]:
    """The document that ``compare`` reads: every job's figures, and the versions they hold for."""
    cases = {job.series: {"name": title_of(job), level: _figures(job, level)} for job in jobs}
    return {"schema": SCHEMA, "environment": _environment(), "cases": cases}


def read_expected(path: Path) -> dict[str, Any]:
    """What ``expected_of`` made.

    Raises:
        ValueError: if the file is something else, with the way out.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA or not isinstance(found["cases"], dict):
            raise KeyError("cases")
    except FileNotFoundError:
        raise ValueError(f"--expected {path}: no such file; make it with --update") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"--expected {path}: not what `bench expect --update` writes") from None
    return dict(found)


def compare(jobs: Iterable[Job], level: str, expected: Mapping[str, Any]) -> list[Drift]:
    """Every job's figures now beside those expected."""
    changed = differences(expected.get("environment") or {}, _environment())
    return [_drift(job, level, expected["cases"].get(job.series) or {}, changed) for job in jobs]


def _drift(job: Job, level: str, case: Mapping[str, Any], changed: tuple[str, ...]) -> Drift:
    before, now = case.get(level) or {}, _figures(job, level)
    parts = {
        name: now["components"].get(name, 0) - before.get("components", {}).get(name, 0)
        for name in now.get("components") or {}
    }
    return Drift(
        name=title_of(job),
        level=level,
        before=before.get("instants"),
        now=now.get("instants"),
        components={name: size for name, size in parts.items() if size},
        differences=changed,
        failure=now.get("failure"),
    )


def _figures(job: Job, level: str) -> dict[str, Any]:
    """Bytes by instant, and by component at the peak; or why there are none."""
    planned = job.predict()
    if level == "plan":
        memory = planned.memory
        return {"instants": dict(memory.instants), "components": dict(memory.components)}
    from vram_plan.bench.dry_run import DryRun

    seen = DryRun(planned.config, fields=job.fields()).run()
    if seen.outcome != "ok" or seen.peak is None:
        return {"failure": seen.error or seen.outcome}
    instants = {instant.name: instant.bytes for instant in seen.instants}
    return {"instants": instants, "components": dict(seen.peak.components or {})}


_ELSEWHERE = frozenset({"machine", "system", "cpus", "commit"})


def _environment() -> dict[str, str]:
    """Versions alone: a dry run comes out the same on every machine."""
    found = surroundings_of({"environment": environment()})
    return {name: found[name] for name in found if name not in _ELSEWHERE}
